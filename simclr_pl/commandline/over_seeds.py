"""What commands that evaluate a frozen encoder share: the encoder or a baseline, and its data."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from simclr_pl.commandline.target import Pretrained
from simclr_pl.core.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.core.model.checkpoint import load_encoder
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.features import accelerator, encode
from simclr_pl.protocols.scoring import Rows, labelled

Baseline = Literal["pixels", "random"]


class Frozen(NamedTuple):
    """A pretrained encoder in front of data, as that encoder was trained to see images.

    Attributes:
        encoder: in eval mode, on the GPU where there is one.
        data: set up; crops and flips are the recipe's, colours are left alone.
    """

    encoder: nn.Module
    data: ContrastiveDataModule

    @property
    def device(self) -> torch.device:
        """Of the encoder."""
        return next(self.encoder.parameters()).device

    def rows(self, split: Split) -> Rows:
        """Labelled features of a split's clean images, on the encoder's device."""
        encoded = encode(self.encoder, self.data, split, labelled_only=True)
        self.data.teardown()  # processes that have decoded it
        return labelled(encoded, split).to(self.device)


class Pixels(nn.Module):
    """The clean image itself as features: float `[B, C, S, S]` to `[B, C * S * S]`."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))
        """So that it has a device, as encoders have."""

    def forward(self, images: Tensor) -> Tensor:
        """Flattens."""
        return images.flatten(1)


def choose_encoder(pretrained: Pretrained, baseline: Baseline | None) -> nn.Module:
    """The encoder of a checkpoint, or what it is compared with, in eval mode.

    Args:
        pretrained: the checkpoint.
        baseline: raw pixels, or the weights that pretraining began with: they follow from its
            seed.

    Raises:
        UserError: weights that don't fit.
    """
    if baseline == "pixels":
        return Pixels()
    if baseline == "random":
        content, source = pretrained.content, str(pretrained.checkpoint)
        return load_backbone(
            content, source, fresh=pretrained.seed, encoder=pretrained.own_encoder
        ).encoder.eval()
    return load_encoder(pretrained.checkpoint, encoder=pretrained.own_encoder)


def freeze(pretrained: Pretrained, baseline: Baseline | None = None) -> Frozen:
    """An encoder on the GPU, where there is one, and its data.

    Raises:
        UserError: as `choose_encoder`; whatever is wrong with the data.
    """
    encoder = choose_encoder(pretrained, baseline).to(accelerator())
    return Frozen(encoder, pretrained.data())


def protocol_name(name: str, baseline: Baseline | None, label_fraction: float) -> str:
    """`linear`, `knn-pixels`, `linear-random-0.01`: what was evaluated, and how many labels."""
    parts = [name, baseline, None if label_fraction == 1 else f"{label_fraction:g}"]
    return "-".join(part for part in parts if part)
