"""`load_backbone`: the encoder and a part of the projection head, to the bit, or fresh ones."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fit
from run_files import checkpoint
from torch import Tensor, nn

from simclr_pl import SimCLR, UserError
from simclr_pl.core.model.checkpoint import KEY
from simclr_pl.core.model.geometry import Geometry
from simclr_pl.core.model.network import build_network
from simclr_pl.protocols.backbone import Backbone, load_backbone

V2 = ("--model.projector_layers", "3", "--model.projector_hidden", "24")
"""SimCLR v2's head, whose layers are of three widths: 16 to 24 to 24 to 128."""

WIDTHS = [16, 24, 24, 128]
"""Of the features, and behind each layer of the head."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("v2") / "run"
    fit(directory, *V2, "--seed_everything", "3")
    return (directory / "checkpoints" / "last.ckpt").read_bytes()


@pytest.fixture
def trained(written: bytes) -> dict[str, Any]:
    """A checkpoint, to be mistreated."""
    loaded: dict[str, Any] = torch.load(io.BytesIO(written), weights_only=True)
    return loaded


def parts(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Of a whole model's weights those of the encoder and of so many layers of the head."""
    prefixes = ("encoder.", *(f"projector.{layer}." for layer in range(layers)))
    return {name: value for name, value in state.items() if name.startswith(prefixes)}


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    modules = nn.ModuleDict({"encoder": backbone.encoder, "projector": backbone.projector})
    return dict(modules.state_dict())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_encoder_and_first_layers_hold_the_checkpoint_s_weights_and_nothing_else(
    trained: dict[str, Any], layers: int
) -> None:
    backbone = load_backbone(trained, "it", layers)
    assert_same(state_of(backbone), parts(trained["state_dict"], layers))
    assert len(backbone.projector) == layers
    assert backbone.width == WIDTHS[layers]
    images = torch.randn(4, 1, 8, 8)
    assert backbone.projector(backbone.encoder(images)).shape == (4, WIDTHS[layers])
    if layers:  # a whole block: the classifier is put behind its batch norm (and ReLU)
        assert isinstance(backbone.projector[-1], nn.Sequential)
        assert [type(m) for m in backbone.projector[-1]][1:2] == [nn.BatchNorm1d]
        assert isinstance(backbone.projector[-1][-1], nn.ReLU) == (layers < 3)


def test_what_comes_out_is_the_pretrained_model_s(trained: dict[str, Any]) -> None:
    model = SimCLR(**trained["hyper_parameters"])
    model.on_load_checkpoint(trained)
    model.load_state_dict(trained["state_dict"])
    model.eval()
    backbone = load_backbone(trained, "it", 2)
    images = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        expected = model.projector[1](model.projector[0](model.encoder(images)))  # type: ignore[index]
        got = backbone.projector.eval()(backbone.encoder.eval()(images))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # another memory layout


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("layers", [0, 2])
def test_fresh_weights_are_those_that_pretraining_with_that_seed_starts_from(
    trained: dict[str, Any], layers: int, seed: int
) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    backbone = load_backbone(trained, "it", layers, seed)
    assert torch.get_rng_state().equal(before)
    about = trained[KEY]
    model = SimCLR(**(trained["hyper_parameters"] | {"seed": seed}))
    build_network(model, Geometry(1, 8, tuple(about["mean"]), tuple(about["std"])))
    assert_same(state_of(backbone), parts(dict(model.state_dict()), layers))
    assert not state_of(backbone)["encoder.conv1.weight"].equal(
        trained["state_dict"]["encoder.conv1.weight"]
    )


def test_fresh_weights_ask_nothing_of_the_trained_ones(trained: dict[str, Any]) -> None:
    expected = state_of(load_backbone(trained, "it", 1, 5))
    for value in trained["state_dict"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    assert_same(state_of(load_backbone(trained, "it", 1, 5)), expected)


# What goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [4, 9])
def test_a_layer_that_the_head_does_not_have_is_a_sentence(
    trained: dict[str, Any], layers: int
) -> None:
    with pytest.raises(UserError, match=f"from_projector_layer is {layers}, .* has 3 layers"):
        load_backbone(trained, "it", layers)


def test_a_file_without_a_head_is_a_sentence(trained: dict[str, Any]) -> None:
    """As exported encoders are, and checkpoints of fine-tuning."""
    del trained["hyper_parameters"]
    with pytest.raises(
        UserError, match="it holds no projection head: give the training checkpoint"
    ):
        load_backbone(trained, "it", 1)
    assert load_backbone(trained, "it", 0).width == WIDTHS[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "layers"), [("encoder.bn1.running_var", 0), ("projector.0.0", 1)])
def test_weights_that_are_no_numbers_are_a_sentence(
    trained: dict[str, Any], name: str, layers: int, value: float
) -> None:
    broken = next(k for k in trained["state_dict"] if k.startswith(name))
    trained["state_dict"][broken].view(-1)[0] = value
    with pytest.raises(UserError, match=r"it has weights that are not finite .*an earlier"):
        load_backbone(trained, "it", layers)


def test_layers_that_are_not_kept_may_be_broken(trained: dict[str, Any]) -> None:
    trained["state_dict"]["projector.2.0.weight"].fill_(torch.nan)
    load_backbone(trained, "it", 2)


def test_another_architecture_is_a_sentence(trained: dict[str, Any]) -> None:
    trained[KEY]["encoder"]["args"]["channels"] = [8, 8, 16, 32]
    with pytest.raises(UserError, match="it holds another architecture: 'layer4"):
        load_backbone(trained, "it")
    trained["hyper_parameters"]["projector_hidden"] = 25
    trained[KEY]["encoder"]["args"]["channels"] = [8, 8, 16, 16]
    with pytest.raises(UserError, match=r"it holds another architecture: '0\.0\.weight'"):
        load_backbone(trained, "it", 1)


def test_a_checkpoint_of_double_precision_serves(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--trainer.precision", "64-true", "--trainer.max_epochs", "1")
    double = checkpoint(tmp_path / "run")
    found = state_of(load_backbone(double, "it", 1))
    for name, value in parts(double["state_dict"], 1).items():
        assert found[name].equal(value.to(found[name].dtype)), name
