"""A checkpoint names the images that its network was last trained on, and the stem it has."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from commands import QUIET
from noise import write_npz
from torch import Tensor

from simclr_pl import ContrastiveDataModule, SimCLR, UserError, load_encoder
from simclr_pl.commands.fit import _InitFrom
from simclr_pl.core.model.checkpoint import KEY, read_checkpoint
from simclr_pl.core.model.optim import OptimizerSettings
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.finetune import FineTuning
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule

OTHER: dict[str, Any] = {"image_size": 16, "mean": (0.5,), "std": (0.1,)}
"""As digits are not: they have 8 px, mean 0.3052 and standard deviation 0.376."""

LARGE: dict[str, Any] = {"image_size": 80, "mean": (0.25,), "std": (0.2,)}
"""So large that a ResNet built for such images gets another stem."""

SGD = OptimizerSettings("sgd", 0.05, "linear", 0.0, 0.9, 0)


def trainer() -> L.Trainer:
    one = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    return L.Trainer(**QUIET, **one, num_sanity_val_steps=0)


def digits(**data: Any) -> ContrastiveDataModule:
    return ContrastiveDataModule(
        **{"batch_size": 16, "jitter": 0, "grayscale": 0, "blur": 0, **data}
    )


def simclr(**options: Any) -> SimCLR:
    small: dict[str, Any] = {"encoder": "resnet10t", "encoder_args": {"channels": [8, 8, 16, 16]}}
    recipe = {"optimizer": "sgd", "learning_rate": 0.05, "warmup_epochs": 0, "projection_dim": 8}
    return SimCLR(**{**small, **recipe, **options})


def fitted(model: SimCLR, path: Path, **data: Any) -> Path:
    run = trainer()
    run.fit(model, digits(**data))
    run.save_checkpoint(path)
    return path


def wants(path: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """What an encoder says of the images that it takes."""
    encoder: Any = load_encoder(path)
    return encoder.image_size, encoder.mean, encoder.std


OTHERS = (16, (0.5,), (0.1,))


def noise(side: int) -> Tensor:
    return torch.randn(4, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on digits as they are."""
    return fitted(simclr(), tmp_path_factory.mktemp("first") / "last.ckpt")


def test_a_model_that_is_fitted_again_names_the_data_it_was_last_trained_on(tmp_path: Path) -> None:
    model = simclr()
    size, mean, _ = wants(fitted(model, tmp_path / "first.ckpt"))
    assert (size, round(mean[0], 4)) == (8, 0.3052)
    assert wants(fitted(model, tmp_path / "second.ckpt", **OTHER)) == OTHERS
    # And once more: it is not the second time that counts.
    assert wants(fitted(model, tmp_path / "third.ckpt"))[:2] == (size, mean)


def test_a_loaded_model_names_the_data_it_was_last_trained_on(first: Path, tmp_path: Path) -> None:
    model = SimCLR.load_from_checkpoint(first)
    assert wants(fitted(model, tmp_path / "again.ckpt", **OTHER)) == OTHERS


def test_a_resume_on_other_data_names_them(first: Path, tmp_path: Path) -> None:
    run, model = trainer(), simclr()
    run.fit_loop.max_epochs = 2
    run.fit(model, digits(**OTHER), ckpt_path=first, weights_only=True)
    assert run.global_step == 2
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert wants(tmp_path / "last.ckpt") == OTHERS


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_scoring_on_other_data_changes_nothing(stage: str, first: Path, tmp_path: Path) -> None:
    loaded, fresh = SimCLR.load_from_checkpoint(first), simclr()
    for model, source in ((loaded, None), (fresh, first)):
        run = trainer()
        options: dict[str, Any] = {"limit_test_batches": 1, "limit_predict_batches": 1}
        for name, value in options.items():
            setattr(run, name, value)
        getattr(run, stage)(model, digits(**OTHER), ckpt_path=source, weights_only=True)
        run.save_checkpoint(tmp_path / "scored.ckpt")
        assert wants(tmp_path / "scored.ckpt") == wants(first)


@pytest.mark.long
def test_the_stem_is_the_one_that_was_built(first: Path, tmp_path: Path) -> None:
    model = simclr()
    fitted(model, tmp_path / "small.ckpt")
    path = fitted(model, tmp_path / "large.ckpt", **LARGE)
    assert read_checkpoint(path)[KEY]["encoder"]["stem"] == "small"
    assert wants(path) == (80, (0.25,), (0.2,))
    again = SimCLR.load_from_checkpoint(path)
    assert again.stem_built.startswith("3x3 stride 1")
    with torch.no_grad():
        expected = model.eval()(noise(80))
        # The memory layout decides how a convolution is summed.
        torch.testing.assert_close(load_encoder(path)(noise(80)), expected, rtol=1e-4, atol=1e-5)
        assert again.eval()(noise(80)).equal(expected)
    again.train()
    # And on: what was loaded is trained and saved like any other.
    assert wants(fitted(again, tmp_path / "on.ckpt", **OTHER)) == OTHERS
    load_encoder(fitted(SimCLR.load_from_checkpoint(path), tmp_path / "further.ckpt", **LARGE))


@pytest.mark.parametrize("stem", ["small", "medium", "imagenet"])
def test_a_stem_that_was_asked_for_stays(stem: str, tmp_path: Path) -> None:
    path = fitted(simclr(stem=stem), tmp_path / "last.ckpt", image_size=32)
    assert read_checkpoint(path)[KEY]["encoder"]["stem"] == stem
    assert SimCLR.load_from_checkpoint(path).spec.stem == stem


@pytest.mark.long
def test_an_older_checkpoint_resolves_its_stem_by_its_own_size(first: Path, tmp_path: Path) -> None:
    """It says `auto`, and the size that it was built for."""
    loaded = torch.load(first, weights_only=True)
    loaded[KEY]["encoder"]["stem"] = "auto"
    old = tmp_path / "old.ckpt"
    torch.save(loaded, old)
    assert wants(old) == wants(first)
    path = fitted(SimCLR.load_from_checkpoint(old), tmp_path / "on.ckpt", **LARGE)
    assert wants(path)[0] == 80
    spec = load_backbone(read_checkpoint(old), "it").spec
    assert (spec.stem, spec.image_size) == ("small", 8)


def test_a_network_without_a_stem_to_choose_is_named_as_its_library_builds_it(
    tmp_path: Path,
) -> None:
    args = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = simclr(encoder="vit_tiny_patch16_224", encoder_args=args)
    path = fitted(model, tmp_path / "last.ckpt")
    assert read_checkpoint(path)[KEY]["encoder"]["stem"] == "imagenet"
    load_encoder(path)


def test_other_channels_are_a_sentence(first: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "colour.npz", 8, 8, 3, classes=0, train=64, test=64)
    colour = {"dataset": "npz", "root": str(path)}
    for stage in ("fit", "validate", "predict"):
        with pytest.raises(
            UserError, match=r"images have 3 channels, .* was built for 1: use data"
        ):
            getattr(trainer(), stage)(SimCLR.load_from_checkpoint(first), digits(**colour))
    tuning = FineTuning(str(first))
    with pytest.raises(UserError, match=r"images have 3 channels, .* was built for 1: use data"):
        trainer().fit(tuning, digits(**colour))


def test_weights_of_another_stem_are_a_sentence_for_a_resume_and_a_start(
    first: Path, tmp_path: Path
) -> None:
    """Built for the data at hand, a stem left at auto is not the checkpoint's."""
    loaded = torch.load(first, weights_only=True)
    loaded[KEY]["encoder"]["stem"] = "auto"
    torch.save(loaded, tmp_path / "old.ckpt")
    # With shapes that fit: a deep stem of timm's differs from the small one in its stride alone.
    sentence = "the encoder in .* has the stem 'small', and this model's has 'imagenet': give model"
    for path in (first, tmp_path / "old.ckpt"):
        with pytest.raises(UserError, match=sentence):
            trainer().fit(simclr(), digits(**LARGE), ckpt_path=path, weights_only=True)
        run = trainer()
        run.callbacks.append(_InitFrom(str(path)))
        with pytest.raises(UserError, match=sentence):
            run.fit(simclr(), digits(**LARGE))


def test_a_resume_with_another_network_is_a_sentence(first: Path) -> None:
    with pytest.raises(UserError, match="the checkpoint holds another architecture: 'projector"):
        trainer().fit(simclr(encoder="resnet18", encoder_args=None), digits(), ckpt_path=first)


def test_a_fine_tuned_checkpoint_names_the_data_it_was_tuned_on(
    first: Path, tmp_path: Path
) -> None:
    for data, expected in ((OTHER, OTHERS), (LARGE, (80, (0.25,), (0.2,)))):
        model = FineTuning(str(first), seed=4)
        run = trainer()
        run.fit(model, LabelledDataModule(0.1, batch_size=16, **data))
        run.save_checkpoint(tmp_path / "tuned.ckpt")
        assert wants(tmp_path / "tuned.ckpt") == expected
        about = read_checkpoint(tmp_path / "tuned.ckpt")[KEY]
        assert (about["seed"], about["encoder"]["stem"]) == (4, "small")
