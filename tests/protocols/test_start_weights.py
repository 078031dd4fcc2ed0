"""Start weights: what of a real file fits an encoder, and the line that says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from simclr_pl import UserError
from simclr_pl.core.model.encoder import EncoderSpec, Stem, build_encoder
from simclr_pl.protocols.start_weights import start_encoder
from simclr_pl.protocols.weight_files import read_weights

State = dict[str, Tensor]


def published(name: str, **args: Any) -> State:
    """A library's whole network, classifier and all, as it is published: for RGB images."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if name == "resnet18":
            return models.resnet18(**args).state_dict()
        return timm.create_model(name, **args).state_dict()


def encoder(name: str, channels: int = 3, stem: Stem = "imagenet", **args: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_encoder(EncoderSpec(name, channels, 64, stem, args)).module


def start(network: nn.Module, content: Any, folder: Path, name: str = "it.pth") -> str:
    """Starts a network from a file with that in it."""
    path = folder / name
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return start_encoder(network, read_weights(str(path)), "resnet18")


def resampled(weight: Tensor, size: int) -> Tensor:
    """FlexiViT's least squares, literally: `pinv(B^T) w`, of B that resizes a patch."""
    old = weight.shape[-1]
    basis = torch.eye(old * old).unflatten(1, (1, old, old))
    resize = F.interpolate(basis, size=(size, size), mode="bicubic", antialias=True).flatten(1).T
    flat = weight.flatten(2) @ torch.linalg.pinv(resize.T).T
    return flat.unflatten(2, (size, size))


# What is loaded -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
@pytest.mark.parametrize("stem", ["small", "medium", "imagenet"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_encoder_starts_from_a_library_s_weights(
    name: str, stem: Stem, channels: int, tmp_path: Path
) -> None:
    theirs, network = published(name), encoder(name, channels, stem)
    line = start(network, theirs, tmp_path)
    own = network.state_dict()
    first = "conv1.weight" if name == "resnet18" else "conv1.0.weight"
    for key, value in own.items():
        if key != first:
            assert torch.equal(value, theirs[key]), key
    expected = theirs[first]
    if name == "resnet18" and stem != "imagenet":
        expected = resampled(expected, 3)
    if channels == 1:
        expected = expected.sum(1, keepdim=True)
    elif channels == 5:
        expected = expected[:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(own[first], expected, rtol=1e-4, atol=1e-5)
    count = sum("num_batches" not in key for key in own)
    assert f"{count} of the {count} tensors of the encoder start from it" in line
    assert ("is fitted to" in line) == (own[first].shape != theirs[first].shape)
    assert line.endswith("; 2 in the file are not used (fc.weight, fc.bias)")
    assert "\n" not in line


def module_of_moco(state: State) -> Any:
    other = {f"module.encoder_k.{key}": torch.zeros_like(v) for key, v in state.items()}
    query = {f"module.encoder_q.{key}": v for key, v in state.items()}
    return {"epoch": 3, "state_dict": {**other, **query, "module.queue": torch.zeros(4, 9)}}


def of_lightly(state: State) -> Any:
    """Of `nn.Sequential(*list(resnet.children())[:-1])`, in a Lightning module."""
    network = models.resnet18()
    network.load_state_dict(state)
    backbone = nn.Sequential(*list(network.children())[:-1])
    head = {"projection_head.layers.0.weight": torch.zeros(8, 512)}
    return {"state_dict": {f"backbone.{k}": v for k, v in backbone.state_dict().items()} | head}


WRAPPED: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda state: state, "start from it;"),
    "DDP": (lambda state: {f"module.{k}": v for k, v in state.items()}, "below 'module.'"),
    "solo-learn": (
        lambda state: {"state_dict": {f"backbone.{k}": v for k, v in state.items()}},
        "below 'backbone.'",
    ),
    "SupContrast": (
        lambda state: {"model": {f"encoder.module.{k}": v for k, v in state.items()}},
        "below 'encoder.module.'",
    ),
    "MoCo": (module_of_moco, "below 'module.encoder_q.'"),
    "lightly": (of_lightly, "below 'backbone.'"),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_usual_wrappers_are_looked_through_and_said(wrapper: str, tmp_path: Path) -> None:
    theirs, network = published("resnet18"), encoder("resnet18")
    wrap, said = WRAPPED[wrapper]
    line = start(network, wrap(theirs), tmp_path)
    assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())
    assert said in line


def test_safetensors_and_files_of_older_torch_are_read(tmp_path: Path) -> None:
    theirs = published("resnet18")
    for name in ("it.safetensors", "old.pth.tar"):
        network = encoder("resnet18")
        if name.startswith("old"):
            torch.save(theirs, tmp_path / name, _use_new_zipfile_serialization=False)
            start_encoder(network, read_weights(str(tmp_path / name)), "resnet18")
        else:
            start(network, theirs, tmp_path, name)
        assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


def test_what_does_not_match_keeps_its_value_and_is_counted(tmp_path: Path) -> None:
    theirs, network = published("resnet18"), encoder("resnet18")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    changed = {k: v for k, v in theirs.items() if k != "layer1.0.bn1.weight"}
    changed["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    line = start(network, changed, tmp_path)
    own = network.state_dict()
    for key in ("layer1.0.bn1.weight", "layer2.0.conv1.weight"):
        assert torch.equal(own[key], before[key])
    assert torch.equal(own["layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
    assert "98 of the 100 tensors of the encoder start from it" in line
    assert (
        "2 stay as initialised (layer1.0.bn1.weight is not there, layer2.0.conv1.weight is "
        "[128, 64, 1, 1] there and [128, 64, 3, 3] here)"
    ) in line
    assert "3 in the file are not used" in line


def test_only_the_first_convolution_is_fitted(tmp_path: Path) -> None:
    theirs, network = published("resnet18"), encoder("resnet18")
    theirs["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    assert "layer1.0.conv1.weight is [64, 64, 5, 5] there" in start(network, theirs, tmp_path)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_positions_of_another_image_size_are_resampled_by_timm(name: str, tmp_path: Path) -> None:
    args = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
    theirs = published(name, img_size=96, **args)
    network = encoder(name, img_size=64, **args)
    line = start(network, theirs, tmp_path)
    table, own = theirs["pos_embed"], network.state_dict()["pos_embed"]
    tokens = own.shape[1] - 64
    assert [table.shape[1], own.shape[1]] == [144 + tokens, 64 + tokens]
    grid = table[:, tokens:].unflatten(1, (12, 12)).permute(0, 3, 1, 2)
    smaller = F.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(own[:, tokens:], smaller.flatten(2).mT)
    assert torch.equal(own[:, :tokens], table[:, :tokens])
    assert f"(pos_embed, {[*table.shape]} there, is fitted to {[*own.shape]})" in line
    assert "stay as initialised" not in line


def test_positions_that_are_no_square_grid_stay_as_initialised(tmp_path: Path) -> None:
    args = {"embed_dim": 24, "depth": 6, "num_heads": 2, "patch_size": 8, "img_size": 64}
    theirs, network = (
        published("vit_tiny_patch16_224", **args),
        encoder("vit_tiny_patch16_224", **args),
    )
    theirs["pos_embed"] = torch.zeros(1, 60, 24)
    assert "(pos_embed is [1, 60, 24] there and [1, 65, 24] here)" in start(
        network, theirs, tmp_path
    )


def test_numbers_of_half_precision_become_the_encoder_s(tmp_path: Path) -> None:
    theirs, network = published("resnet18"), encoder("resnet18", 1, "small")
    start(network, {k: v.half() for k, v in theirs.items()}, tmp_path)
    assert network.conv1.weight.dtype == torch.float32
    assert torch.equal(
        network.fc(network.layer1[0].conv1.weight), theirs["layer1.0.conv1.weight"].half().float()
    )


def test_an_encoder_of_one_s_own_keeps_its_own_names(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 8))

    theirs, network = Net(), Net()
    start(network, theirs.state_dict(), tmp_path)
    for key, value in theirs.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    start(encoder("resnet18", 5, "small"), published("resnet18"), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "share"),
    [
        ({"weight": torch.zeros(3)}, "0 of the 100 tensors"),
        (lambda: published("resnet26"), "77 of the 100 tensors"),
        (lambda: {k: v for k, v in published("resnet18").items() if k < "layer3"}, "50 of"),
    ],
    ids=["nothing", "another network", "a part"],
)
def test_another_network_s_weights_are_a_sentence(content: Any, share: str, tmp_path: Path) -> None:
    network = encoder("resnet18")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match="holds another network than resnet18") as raised:
        start(network, content() if callable(content) else content, tmp_path)
    assert share in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_weights_that_are_no_numbers_are_a_sentence(tmp_path: Path) -> None:
    theirs = published("resnet18")
    theirs["bn1.weight"][3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        start(encoder("resnet18"), theirs, tmp_path)
