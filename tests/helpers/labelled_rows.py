"""Rows of labelled features for linear evaluation."""

import torch

from simclr_pl import ContrastiveDataModule
from simclr_pl.protocols import linear
from simclr_pl.protocols.features import Features
from simclr_pl.protocols.linear import Settings, fit_linear
from simclr_pl.protocols.scoring import Rows, labelled

QUICK = Settings(learning_rates=(0.03, 0.3), weight_decays=(0.0, 1e-2), epochs=5, steps=100)


def blobs(rows: int, seed: int, classes: int = 3, apart: float = 1.0) -> Rows:
    """Overlapping classes, on features of very different scales, the last of them constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    x = torch.randn(rows, 6, generator=generator) + apart * torch.eye(classes, 6)[labels]
    scale = torch.tensor([1e-3, 1.0, 1e3, 1.0, 10.0, 0.0])
    return Rows(x * scale + torch.tensor([5.0, -2.0, 0.0, 0.0, 100.0, 3.3]), labels)


def evaluate(train: Rows, test: Rows, settings: Settings = QUICK, classes: int = 3) -> linear.Score:
    return fit_linear(lambda _: train.features, train.labels, classes, settings).score(test)


def digits() -> tuple[Rows, Rows]:
    """Pixels."""
    data = ContrastiveDataModule("digits", seed=0)
    data.setup()
    return pixels_of(data)


def pixels_of(data: ContrastiveDataModule) -> tuple[Rows, Rows]:
    parts = []
    for source in (data.splits.train, data.splits.test):
        x = source.images.flatten(1).float() / 255  # type: ignore[union-attr]
        parts.append(labelled(Features(x, source.labels, torch.arange(len(x))), "pixels"))
    return parts[0], parts[1]
