"""The encoder f(.): an image network without its classifier, by library name or of one's own."""

import difflib
import re
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import torch
from torch import Tensor, nn

from simclr_pl.core.errors import UserError, check, in_one_line
from simclr_pl.core.lookup import Choice, Door, construct, is_class_path, lookup, spelt_out

ENCODERS = {"mlp": "simclr_pl.core.model.mlp.MLP"}
"""Names of encoders that neither library has, and their class paths."""

SMALL_IMAGE = 64
"""Up to this side, in pixels, ResNets get the small-image stem (the paper's appendix B.9)."""

# What the libraries' constructors raise at arguments that they don't know or cannot combine.
_REFUSALS = (TypeError, ValueError, KeyError, AssertionError, RuntimeError)

Stem = Literal["auto", "small", "medium", "imagenet"]

STRIDES = {"small": 1, "medium": 2}
"""Of the 3x3 convolution that replaces a ResNet's stem and its max-pool."""


class EncoderSpec(NamedTuple):
    """What rebuilds an encoder's architecture: stored in checkpoints, plain values only.

    Attributes:
        name: a torchvision ResNet's name (`resnet18`, `resnext50_32x4d`, ...), any timm model's,
            one of `ENCODERS`, or the class path of one's own.
        channels: image channels.
        image_size: image side S in pixels.
        stem: `auto` chooses by the image size, `small` is a 3x3 convolution of stride 1 and no
            max-pool, `medium` the same with stride 2 (a quarter of the work), `imagenet` leaves
            the network as its library makes it.
        args: further keyword arguments of its constructor. A library's `pretrained` is no
            architecture, and left out of what was built.
    """

    name: str
    channels: int
    image_size: int
    stem: Stem
    args: dict[str, Any]


class BuiltEncoder(NamedTuple):
    """An encoder and what was derived while building it.

    Attributes:
        module: float images `[B, C, S, S]` to features `[B, D]`.
        width: D.
        stem: what became of the stem, in words.
        spec: what rebuilds it for images of any size: with the stem that it has, never `auto`.
    """

    module: nn.Module
    width: int
    stem: str
    spec: EncoderSpec


def chosen_encoder(given: Door) -> Choice:
    """What makes an encoder: nothing (`target` is `None`) for a name of the libraries or a table.

    Args:
        given: a name or a class path, alone or with `init_args`, a class or a module.

    Raises:
        UserError: as `lookup`.
    """
    name, args = spelt_out(given, "model.encoder")
    if isinstance(name, str) and not is_class_path(name):
        return Choice(name, None, args)
    return lookup(given, {}, "model.encoder")


def build_encoder(spec: EncoderSpec, own: Choice | None = None) -> BuiltEncoder:
    """Builds an encoder with fresh weights from torch's global generator.

    Args:
        spec: what to build.
        own: what makes it, where it is of one's own: a class that a file names is not imported.

    Raises:
        UserError: a name that neither library knows, or a class path without that class; arguments
            that its constructor refuses, a stem that cannot be fitted, images too small for the
            network, or a network whose output is not `[B, D]`.
    """
    stems = get_args(Stem)
    check(spec.stem in stems, "model.stem", spec.stem, f"one of {', '.join(stems)}")
    if spec.name in ENCODERS:
        own = lookup(spec.name, ENCODERS, "model.encoder")
    if own is None or own.target is None:
        own, args = None, {key: value for key, value in spec.args.items() if key != "pretrained"}
        network, maker = _create(spec := spec._replace(args=args))
    else:
        network, maker = own.target, spec.name
        if not isinstance(network, nn.Module):
            images = {"channels": spec.channels, "image_size": spec.image_size}
            network = construct(own._replace(args=spec.args), "model.encoder", **images)
        if not isinstance(network, nn.Module):
            raise UserError(f"model.encoder {spec.name} is no torch.nn.Module: give one that is")
    built, stem = _stem(network, spec, of_library=own is None)
    try:
        width = _feature_width(network, spec)
    except Exception as error:  # somebody's own code raises anything
        size = spec.image_size
        other = (
            "; choose another data.image_size or model.encoder, or for a transformer give "
            f"--model.encoder_args '{{img_size: {size}}}'"
        )
        raise UserError(
            f"model.encoder {spec.name} does not map images [B, {spec.channels}, {size}, {size}] "
            f"to features [B, D] ({in_one_line(error)}){other if own is None else ''}"
        ) from error
    where = "" if own else f" ({maker})"
    return BuiltEncoder(network, width, stem + where, spec._replace(stem=built))


def _stem(network: nn.Module, spec: EncoderSpec, *, of_library: bool) -> tuple[Stem, str]:
    """Fits the stem that is wanted, and returns which it is, and what became of it in words."""
    small: Stem = "small" if spec.image_size <= SMALL_IMAGE and of_library else "imagenet"
    wanted: Stem = small if spec.stem == "auto" else spec.stem
    if wanted in STRIDES and _fit_stem(network, STRIDES[wanted]):
        return wanted, f"3x3 stride {STRIDES[wanted]}, no max-pool"
    if spec.stem in STRIDES:
        raise UserError(
            f"model.stem '{spec.stem}' is for ResNet-like networks, and {spec.name} has no conv1 "
            "to replace: leave model.stem at 'auto'"
        )
    return "imagenet", f"as {'the library' if of_library else 'its class'} builds it"


def _create(spec: EncoderSpec) -> tuple[nn.Module, str]:
    from torchvision import models

    resnets = {n for n in models.list_models(module=models) if "resne" in n}
    try:
        if spec.name in resnets:
            network: nn.Module = models.get_model(spec.name, weights=None, **spec.args)
            network.fc = nn.Identity()
            if isinstance(conv := network.conv1, nn.Conv2d) and conv.in_channels != spec.channels:
                network.conv1 = _like(conv, spec.channels, conv.kernel_size[0], conv.stride[0])
            return network, "torchvision"
        import timm  # late: it takes seconds

        if not timm.is_model(spec.name):
            _refuse_name(spec.name, sorted({*resnets, *timm.list_models()}))
        args = {"in_chans": spec.channels, "num_classes": 0, **spec.args}
        return timm.create_model(spec.name, pretrained=False, **args), "timm"
    except UserError:
        raise
    except _REFUSALS as error:
        raise UserError(
            f"model.encoder_args don't fit {spec.name}: {error}. Give those of this network, or "
            "--model.encoder_args null"
        ) from error


def _refuse_name(name: str, known: list[str]) -> NoReturn:
    if is_class_path(name):
        raise UserError(
            f"the encoder is of the class {name}, which is imported for its owner alone: give "
            "--config FILE that names it, or in Python load_encoder(path, encoder=Net)"
        )
    module = re.split("[.:]", name)[0]
    if module not in (name, *known):
        said = f"there is no module '{module}', nor such a timm model"
        raise UserError(f"model.encoder {name}: {said}")
    near = difflib.get_close_matches(name, known, 3) or ["resnet18", "resnet50"]
    raise UserError(
        f"unknown encoder '{name}': torchvision's ResNets, every timm model and mlp serve, or a "
        f"class path of your own, as my_module.Net; did you mean {' or '.join(near)}?"
    )


def _fit_stem(network: nn.Module, stride: int) -> bool:
    """Replaces the stem of a ResNet of either library; False where there is none to replace."""
    conv = getattr(network, "conv1", None)
    if not isinstance(getattr(network, "maxpool", None), nn.Module):
        return False
    if isinstance(conv, nn.Sequential) and isinstance(conv[0], nn.Conv2d):  # timm's deep stems
        conv[0] = _like(conv[0], conv[0].in_channels, 3, stride)
    elif isinstance(conv, nn.Conv2d):
        network.conv1 = _like(conv, conv.in_channels, 3, stride)
    else:
        return False
    network.maxpool = nn.Identity()
    return True


def _like(conv: nn.Conv2d, channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution with the outputs of `conv`, initialised as ResNets are (He et al. 2015)."""
    new = nn.Conv2d(
        channels, conv.out_channels, kernel, stride, kernel // 2, bias=conv.bias is not None
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


@torch.no_grad()
def _feature_width(network: nn.Module, spec: EncoderSpec) -> int:
    was_training = network.training
    weight = next(network.parameters(), torch.empty(0))
    images = torch.zeros(1, spec.channels, spec.image_size, spec.image_size).to(weight)
    features: Any = network.eval()(images)
    network.train(was_training)
    if not isinstance(features, Tensor) or features.dim() != 2:
        shape = [*features.shape] if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"its output has shape {shape} instead of [B, D]")
    return features.shape[1]
