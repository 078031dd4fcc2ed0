"""Checkpoints of a real run: the encoder comes out as it went in, and no file is trusted."""

import copy
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from commands import QUIET
from torch import Tensor, nn

from simclr_pl import ContrastiveDataModule, SimCLR, UserError, load_encoder
from simclr_pl.core.model.checkpoint import FORMAT, KEY, fit_weights, read_checkpoint
from simclr_pl.run.checkpoints import AtomicCheckpointIO


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimCLR, Path]:
    """Two steps on digits, and the checkpoint that Lightning wrote of them."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    trainer = L.Trainer(**QUIET, max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    model = SimCLR(optimizer="sgd", warmup_epochs=0, projection_dim=16, seed=5)
    trainer.fit(model, ContrastiveDataModule(batch_size=64))
    trainer.save_checkpoint(path)
    return model, path


@pytest.fixture
def written(trained: tuple[SimCLR, Path], tmp_path: Path) -> Any:
    """Writes a changed copy of the checkpoint: `written(change)` gives its path."""

    def write(change: Any) -> Path:
        checkpoint = torch.load(trained[1], weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def digits(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


# The encoder -------------------------------------------------------------------------------------


def test_a_loaded_encoder_gives_the_features_of_the_trained_one(
    trained: tuple[SimCLR, Path],
) -> None:
    model, path = trained
    encoder = load_encoder(path)
    with torch.no_grad():
        expected = model.eval()(digits())
        got = encoder(digits())
    assert got.shape == (4, 512)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # another memory layout
    assert expected.std(0).max() > 0.01  # not all the same anyway
    state = model.encoder.state_dict()
    assert all(value.equal(state[name]) for name, value in encoder.state_dict().items())
    assert int(state["bn1.num_batches_tracked"]) == 2  # it is the trained one


def test_a_loaded_encoder_is_in_eval_mode_and_says_what_images_it_wants(
    trained: tuple[SimCLR, Path],
) -> None:
    model, path = trained
    encoder = load_encoder(str(path))
    assert model.geometry is not None
    assert not any(module.training for module in encoder.modules())
    assert (encoder.mean, encoder.std) == (model.geometry.mean, model.geometry.std)
    assert len(encoder.mean) == 1
    assert encoder.image_size == 8
    assert {p.device.type for p in encoder.parameters()} == {"cpu"}


def test_the_whole_module_comes_back_without_data(trained: tuple[SimCLR, Path]) -> None:
    model, path = trained
    again = SimCLR.load_from_checkpoint(path).eval()
    assert again.geometry == model.geometry
    assert again.hparams == model.hparams
    assert again.hparams["projection_dim"] == 16
    first, second = again.state_dict(), model.state_dict()
    assert list(first) == list(second)
    assert all(first[name].equal(second[name]) for name in first)
    with torch.no_grad():
        assert again(digits()).equal(model.eval()(digits()))


# Nothing is executed -----------------------------------------------------------------------------


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("read", [read_checkpoint, load_encoder])
def test_code_in_a_checkpoint_is_refused_and_not_executed(
    read: Any, written: Any, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    path = written(lambda checkpoint: checkpoint.update(extra=_Bomb(mark)))
    with pytest.raises(UserError, match=r"changed.ckpt cannot be read"):
        read(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it was a live one


# Files that are something else -------------------------------------------------------------------


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(UserError, match=f"there is no checkpoint at {path}: give the path"):
            load_encoder(path)


def alike(one: Any, other: Any) -> bool:
    """Whether two things that were read are equal to the bit."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.dtype == other.dtype
        return same and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, dict):
        same = isinstance(other, dict) and list(one) == list(other)
        return same and all(alike(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.long
def test_a_flipped_bit_is_refused_unless_it_makes_no_difference(tmp_path: Path) -> None:
    """In headers, records and the table at the end, of which torch looks at little."""
    weights = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor([3])}
    path, flipped = tmp_path / "small.ckpt", tmp_path / "flipped.ckpt"
    spec = {"name": "resnet18", "channels": 1, "image_size": 8, "stem": "small", "args": {}}
    about = {"format": FORMAT, "encoder": spec, "image_size": 8, "mean": [0.5], "std": [0.5]}
    good = {KEY: about, "state_dict": weights, "epoch": 3}
    torch.save(good, path)
    content = path.read_bytes()
    table = content.index(b"PK\x01\x02")
    bits = [*range(0, 8 * table, 7), *range(8 * table, 8 * len(content))]
    sentences = []
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(damaged)
        os.utime(flipped, ns=(bit, bit))
        try:
            read = read_checkpoint(flipped)
        except UserError as error:
            sentences.append(str(error))
        else:
            assert alike(good, read), bit
    assert len(bits) > 3000
    assert len(sentences) > len(bits) / 3
    said = re.compile("flipped.ckpt (is damaged: its record|cannot be read: it is)")
    assert [sentence for sentence in sentences if not said.search(sentence)] == []


def _resumed(path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False)
    trainer.fit(SimCLR(projection_dim=16), ContrastiveDataModule(batch_size=64), ckpt_path=path)


@pytest.mark.parametrize(
    "read",
    [load_encoder, SimCLR.load_from_checkpoint, AtomicCheckpointIO().load_checkpoint, _resumed],
)
def test_a_flipped_bit_of_a_weight_is_refused_by_whoever_reads(
    read: Any, trained: tuple[SimCLR, Path], tmp_path: Path
) -> None:
    path = tmp_path / "flipped.ckpt"
    weight = trained[0].encoder.get_parameter("conv1.weight").detach()
    content = bytearray(trained[1].read_bytes())
    content[content.index(weight.flatten()[:8].numpy().tobytes())] ^= 64
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"flipped.ckpt is damaged: its record .*data/\d+ is no"):
        read(path)


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_a_sentence(
    share: float, trained: tuple[SimCLR, Path], tmp_path: Path
) -> None:
    content = trained[1].read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"cut.ckpt cannot be read: it is truncated, or not"):
        load_encoder(path)


def _legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save({KEY: {"format": FORMAT}}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"hello world\n" * 20,  # KeyError
        "über\n".encode() * 20,
        b"seed_everything: 0\nmodel:\n  encoder: resnet18\n",
        b'{"a": 1}',
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"U\x13\xc2gA",  # UnicodeDecodeError
        b"\x81\xf6",  # IndexError
        b"r\x14\t",  # struct.error
        _legacy()[:100],
        pickle.dumps({"a": [1, 2]})[:1],
    ],
)
def test_a_file_that_is_no_checkpoint_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other.ckpt (cannot be read|is not a checkpoint)"):
        load_encoder(path)


@pytest.mark.parametrize(
    "content", [{"state_dict": {}, "epoch": 3}, [1, 2], torch.zeros(3), None, {KEY: "else"}]
)
def test_another_programs_checkpoint_is_a_sentence(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"other.ckpt is not a checkpoint of simclr_pl: give"):
        load_encoder(path)


@pytest.mark.parametrize("number", [FORMAT + 1, 0, None])
def test_another_format_is_a_sentence(number: int | None, written: Any) -> None:
    path = written(lambda checkpoint: checkpoint[KEY].update(format=number))
    with pytest.raises(
        UserError, match=f"changed.ckpt has format {number}, .* reads format {FORMAT}"
    ):
        load_encoder(path)
    with pytest.raises(UserError, match=f"the checkpoint has format {number}, "):
        SimCLR.load_from_checkpoint(path)


def test_a_foreign_checkpoint_is_refused_by_the_module_too(written: Any) -> None:
    path = written(lambda checkpoint: checkpoint.pop(KEY))
    with pytest.raises(UserError, match="the checkpoint is not a checkpoint of simclr_pl"):
        SimCLR.load_from_checkpoint(path)


# Weights that don't fit --------------------------------------------------------------------------


def _drop(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state_dict"]["encoder.conv1.weight"]


def _add(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"]["encoder.conv9.weight"] = torch.zeros(1)


def _rename(checkpoint: dict[str, Any]) -> None:
    checkpoint[KEY]["encoder"]["name"] = "resnet50"


def _grow(checkpoint: dict[str, Any]) -> None:
    checkpoint[KEY]["encoder"]["channels"] = 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_drop, r"'conv1.weight' is absent there and \[64, 1, 3, 3\] here"),
        (_add, r"'conv9.weight' is \[1\] there and absent here"),
        (_rename, r"'layer1.0.conv1.weight' is \[64, 64, 3, 3\] there and \[64, 64, 1, 1\] here"),
        (_grow, r"'conv1.weight' is \[64, 1, 3, 3\] there and \[64, 3, 3, 3\] here"),
    ],
)
def test_weights_of_another_architecture_are_named(
    change: Any, sentence: str, written: Any
) -> None:
    path = written(change)
    with pytest.raises(UserError, match=f"changed.ckpt holds another architecture: {sentence}"):
        load_encoder(path)


def test_fitting_weights_are_loaded_and_others_change_nothing() -> None:
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    weights = other.state_dict()
    fit_weights(module, weights, "there")
    assert module.weight.equal(other.weight)
    assert module.bias.equal(other.bias)
    before = copy.deepcopy(module.state_dict())
    for wrong in (
        {"weight": torch.ones(2, 3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
        {"weight": torch.ones(2, 3), "bias": torch.ones(2), "scale": torch.ones(2)},
    ):
        with pytest.raises(UserError, match="there holds another architecture"):
            fit_weights(module, wrong, "there")
        assert all(value.equal(before[name]) for name, value in module.state_dict().items())
