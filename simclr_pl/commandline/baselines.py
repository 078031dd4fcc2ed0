"""Baselines of a pretrained encoder: pixels, its own start, or somebody's weights."""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simclr_pl.commandline.target import Pretrained
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.checkpoint import KEY, handed_over, stem_in
from simclr_pl.core.model.encoder import STRIDES, BuiltEncoder, EncoderSpec, build_encoder
from simclr_pl.core.paths import expanded
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.start_weights import compare, load, published_of
from simclr_pl.protocols.weight_files import Weights, is_library_name, read_weights
from simclr_pl.run.results import sha256

IMAGENET_STRIDE = 4
"""Stride of a ResNet's own stem: a convolution and a max-pool, of stride 2 each."""


class Chosen(NamedTuple):
    """The encoder to evaluate.

    Attributes:
        encoder: in eval mode.
        label: a short name of a baseline, for protocols and columns; `None` for the run's encoder.
        weights: name and treatment of weights that are neither the run's nor its start's.
    """

    encoder: nn.Module
    label: str | None = None
    weights: str | None = None


class Pixels(nn.Module):
    """The clean image itself as features: float `[B, C, S, S]` to `[B, C * S * S]`."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))
        """So that it has a device, as encoders have."""

    def forward(self, images: Tensor) -> Tensor:
        """Flattens."""
        return images.flatten(1)


def choose_encoder(pretrained: Pretrained, baseline: str | None) -> Chosen:
    """The encoder of a checkpoint, or what it is compared with.

    Args:
        pretrained: the checkpoint.
        baseline: `pixels`; `random`, the weights that pretraining began with, which follow from its
            seed; `imagenet`, the weights that the encoder's library publishes; a file, or a
            library's name, as `--init_from` takes them.

    Raises:
        UserError: weights that don't fit, cannot be read or fetched; another word.
    """
    if baseline == "pixels":
        return Chosen(Pixels(), baseline)
    if baseline is not None and baseline != "random":
        return _with_weights(pretrained, baseline)
    fresh, own = pretrained.seed if baseline else None, pretrained.own_encoder
    source = str(pretrained.checkpoint)
    backbone = load_backbone(pretrained.content, source, fresh=fresh, encoder=own)
    return Chosen(backbone.encoder.eval(), baseline)


def _with_weights(pretrained: Pretrained, baseline: str) -> Chosen:
    if baseline == "imagenet":
        built = _built(pretrained, EncoderSpec(**pretrained.about["encoder"]))
        weights = published_of(built.module, built.spec.name, built.spec.args)
        return _fitted(weights, pretrained, baseline)
    name = baseline if is_library_name(baseline) else Path(baseline).stem
    label = "weights-" + re.sub(r"[^\w.]+", "-", name)
    if is_library_name(baseline):
        return _fitted(read_weights(baseline), pretrained, label)
    file = expanded(baseline)
    if not file.is_file():
        raise UserError(
            f"baseline is '{baseline}', but must be pixels, random, imagenet, a file of weights "
            "(and there is none of that name), torchvision:NAME or timm:NAME"
        )
    weights = read_weights(baseline)
    digest = sha256(file)
    label, named = f"{label}-{digest[:8]}", f"{file} (sha256 {digest})"
    if weights.ours is None:
        return _fitted(weights._replace(name=named), pretrained, label)
    return Chosen(_another_run_s(weights, file, pretrained), label, named)


def _another_run_s(weights: Weights, file: Path, pretrained: Pretrained) -> nn.Module:
    """The encoder in another checkpoint of this package."""
    assert weights.ours is not None
    theirs, own = weights.ours[KEY]["encoder"], pretrained.about["encoder"]
    if theirs["channels"] != own["channels"]:
        raise UserError(
            f"the encoder in {file} takes images of {theirs['channels']} channels, and this run's "
            f"takes {own['channels']}: give weights for such images"
        )
    same = theirs["name"] == own["name"]
    class_of_own = pretrained.own_encoder if same else None
    return load_backbone(weights.ours, str(file), encoder=class_of_own).encoder.eval()


def _fitted(weights: Weights, pretrained: Pretrained, label: str) -> Chosen:
    """The run's own architecture with other weights, all of them.

    Where those were trained behind a ResNet's own stem, which the run replaced by one for small
    images, the network is left as it was trained, and images are enlarged in front of it: its
    layers then see maps of the same size as the run's do.
    """
    about = EncoderSpec(**pretrained.about["encoder"])
    stem = stem_in(pretrained.about)
    for wanted in dict.fromkeys((stem, "imagenet")):
        encoder = _built(pretrained, about._replace(stem=wanted)).module
        match = compare(encoder, weights)
        if not match.resized:
            break
    if match.absent:
        raise UserError(
            f"{weights.name} is no baseline for {about.name}: it has {match.share} of the encoder "
            f"({match.line()}). Give weights of the run's own architecture"
        )
    load(encoder, match, weights.name)
    said = f"{weights.name}{match.fitted}"
    if wanted != stem:
        times = IMAGENET_STRIDE // STRIDES[stem]
        enlarge = nn.Upsample(scale_factor=times, mode="bilinear", align_corners=False)
        encoder = nn.Sequential(enlarge, encoder)
        said += f", behind its own stem, images enlarged {times} times"
    return Chosen(encoder.eval(), label, said)


def _built(pretrained: Pretrained, spec: EncoderSpec) -> BuiltEncoder:
    with torch.random.fork_rng(devices=[]):
        return build_encoder(spec, handed_over(pretrained.own_encoder))
