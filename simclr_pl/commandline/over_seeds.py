"""What commands that evaluate a frozen encoder share: the encoder or a baseline, and its data."""

import sys
from typing import Any, NamedTuple

import torch
from torch import nn

from simclr_pl.commandline.baselines import choose_encoder
from simclr_pl.commandline.target import Pretrained
from simclr_pl.core.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.protocols.features import accelerator, encode
from simclr_pl.protocols.scoring import Rows, labelled


class Frozen(NamedTuple):
    """A pretrained encoder in front of data, as that encoder was trained to see images.

    Attributes:
        encoder: in eval mode, on the GPU where there is one.
        data: set up; crops and flips are the recipe's, colours are left alone.
        label: what to call a baseline that is in the encoder's place.
        about: what results say of that.
    """

    encoder: nn.Module
    data: ContrastiveDataModule
    label: str | None
    about: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Of the encoder."""
        return next(self.encoder.parameters()).device

    def rows(self, split: Split) -> Rows:
        """Labelled features of a split's clean images, on the encoder's device."""
        encoded = encode(self.encoder, self.data, split, labelled_only=True)
        self.data.teardown()  # processes that have decoded it
        return labelled(encoded, split).to(self.device)


def freeze(pretrained: Pretrained, baseline: str | None = None) -> Frozen:
    """An encoder on the GPU, where there is one, and its data; a line says whose weights it has.

    Args:
        pretrained: the checkpoint, and its run.
        baseline: what to put in its encoder's place, as `choose_encoder` takes it.

    Raises:
        UserError: as `choose_encoder`; whatever is wrong with the data.
    """
    chosen = choose_encoder(pretrained, baseline)
    about: dict[str, Any] = {"baseline": baseline}
    if chosen.weights is not None:
        about["baseline_weights"] = chosen.weights
        sys.stdout.write(f"baseline: {chosen.weights}\n")
    encoder = chosen.encoder.to(accelerator())
    return Frozen(encoder, pretrained.data(), chosen.label, about)


def protocol_name(name: str, label: str | None, label_fraction: float) -> str:
    """`linear`, `knn-pixels`, `linear-random-0.01`: what was evaluated, and how many labels."""
    parts = [name, label, None if label_fraction == 1 else f"{label_fraction:g}"]
    return "-".join(part for part in parts if part)
