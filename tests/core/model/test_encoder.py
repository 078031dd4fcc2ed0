"""Encoders by library name: width, channels, stem, and sentences about what doesn't fit."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from simclr_pl import UserError
from simclr_pl.core.model.encoder import BuiltEncoder, EncoderSpec, Stem, build_encoder


def build(
    name: str, size: int, channels: int = 3, stem: Stem = "auto", **args: Any
) -> BuiltEncoder:
    return build_encoder(EncoderSpec(name, channels, size, stem, args))


def features(encoder: nn.Module, size: int, channels: int = 3) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(torch.randn(2, channels, size, size))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512),
        ("resnext50_32x4d", 2048),
        ("resnet10t", 512),
        ("efficientnet_lite0", 1280),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_as_wide_as_said(name: str, width: int, channels: int) -> None:
    built = build(name, 32, channels)
    assert built.width == width
    assert features(built.module, 32, channels).shape == (2, width)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_get_the_small_stem(size: int, channels: int) -> None:
    built = build("resnet18", size, channels)
    conv = built.module.conv1
    assert (conv.in_channels, conv.kernel_size, conv.stride) == (channels, (3, 3), (1, 1))
    assert conv.bias is None
    assert isinstance(built.module.maxpool, nn.Identity)
    assert built.stem == "3x3 stride 1, no max-pool (torchvision)"
    seen = {}
    built.module.layer1.register_forward_hook(lambda _m, _i, out: seen.update(shape=out.shape))
    features(built.module, size, channels)
    assert seen["shape"] == (2, 64, size, size)  # nothing is lost before the first stage


@pytest.mark.parametrize("size", [65, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_larger_images_get_the_librarys_stem(size: int, channels: int) -> None:
    built = build("resnet18", size, channels)
    conv = built.module.conv1
    assert (conv.in_channels, conv.kernel_size, conv.stride) == (channels, (7, 7), (2, 2))
    assert isinstance(built.module.maxpool, nn.MaxPool2d)
    assert built.stem == "as the library builds it (torchvision)"
    assert features(built.module, size, channels).shape == (2, 512)


def test_the_stem_can_be_chosen() -> None:
    assert build("resnet18", 96, stem="small").module.conv1.kernel_size == (3, 3)
    assert build("resnet18", 32, stem="imagenet").module.conv1.kernel_size == (7, 7)
    assert isinstance(build("resnet18", 32, stem="imagenet").module.maxpool, nn.MaxPool2d)


def test_timms_deep_stem_becomes_small_as_well() -> None:
    built = build("resnet10t", 32, 1)
    first = built.module.conv1[0]
    assert (first.in_channels, first.kernel_size, first.stride) == (1, (3, 3), (1, 1))
    assert isinstance(built.module.maxpool, nn.Identity)
    assert built.stem == "3x3 stride 1, no max-pool (timm)"


def test_a_network_without_such_a_stem_is_left_alone() -> None:
    built = build("vit_tiny_patch16_224", 32, img_size=32, patch_size=8, depth=1)
    assert built.stem == "as the library builds it (timm)"
    assert (built.width, features(built.module, 32).shape) == (192, (2, 192))


def test_new_stems_are_initialised_as_resnets_are() -> None:
    """He et al. 2015, fan out: variance 2 / (outputs x kernel area)."""
    torch.manual_seed(0)
    for size, area in ((32, 9), (96, 49)):
        weight = build("resnet18", size, channels=16).module.conv1.weight.detach()
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / (64 * area)), rel=0.03)
        assert abs(float(weight.mean())) < 0.06 * float(weight.std())


def test_weights_come_from_torchs_generator_alone() -> None:
    def weights() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return build("resnet18", 16, 1).module.state_dict()

    first, second = weights(), weights()
    assert all(first[name].equal(second[name]) for name in first)


def test_the_encoder_comes_in_training_mode_with_untouched_statistics() -> None:
    built = build("resnet18", 8, 1)
    assert built.module.training
    assert int(built.module.bn1.num_batches_tracked) == 0


def test_arguments_reach_the_librarys_constructor() -> None:
    built = build("resnet18", 16, zero_init_residual=True)
    assert not built.module.layer1[0].bn2.weight.any()


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet81", "resnet18"), ("resnet_50", "resnet50"), ("regnetx_02", "regnetx_002")],
)
def test_an_unknown_name_gets_suggestions(name: str, near: str) -> None:
    with pytest.raises(
        UserError, match=f"unknown encoder '{name}'.*did you mean .*{near}"
    ) as refusal:
        build(name, 32)
    suggested = str(refusal.value).split("did you mean ")[1].rstrip("?").split(" or ")
    assert near in suggested
    assert len(set(suggested)) == len(suggested), "the same suggestion twice"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {"depth": 3}),  # TypeError
        ("resnet18", {"weights": "IMAGENET1K_V1"}),
        ("resnet18", {"width_per_group": 128}),  # ValueError
        ("resnet18", {"replace_stride_with_dilation": [False, True, False]}),  # NotImplementedError
        ("resnet10t", {"depth": 3}),
        ("resnet10t", {"norm_layer": "none_such"}),  # KeyError
        ("vit_tiny_patch16_224", {"embed_dim": 191}),  # AssertionError
    ],
)
def test_arguments_that_dont_fit_are_a_sentence(name: str, args: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"model.encoder_args don't fit {name}: "):
        build(name, 224, **args)


def test_a_small_stem_is_for_resnets_only() -> None:
    with pytest.raises(UserError, match=r"'small' is for ResNet-like networks.*vit_tiny.* 'auto'"):
        build("vit_tiny_patch16_224", 224, stem="small")


def test_an_unknown_stem_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"model.stem is 'tiny', but must be one of auto, small"):
        build("resnet18", 32, stem="tiny")


def test_images_of_another_size_than_the_networks_are_a_sentence() -> None:
    sentence = r"vit_tiny_patch16_224 does not map images \[B, 3, 32, 32\] .*data.image_size"
    with pytest.raises(UserError, match=sentence):
        build("vit_tiny_patch16_224", 32)


def test_a_network_that_does_not_pool_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"resnet10t does not map .* shape \[1, 512, 4, 4\]"):
        build("resnet10t", 32, global_pool="")
