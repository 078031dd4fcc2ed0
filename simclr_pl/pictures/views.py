"""Images beside their views, and how every picture shows images."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from simclr_pl.core.batch import Batch
from simclr_pl.core.data.datamodule import ContrastiveDataModule

DPI = 110
"""Dots an inch of every picture: legible at 100 %."""


def draw_views(data: ContrastiveDataModule, images: int, epochs: int) -> Figure:
    """Images of the training split, a row each, and the views of them in each epoch.

    Args:
        data: set up.
        images: how many, evenly spread over the split.
        epochs: how many.
    """
    source = data.splits.train
    some = torch.linspace(0, len(source) - 1, min(images, len(source))).long()
    columns: dict[str, Tensor] = {}
    for epoch in range(epochs):
        batch: Batch = next(iter(source.batches([some], epoch, "both")))
        if not columns:
            columns["clean"] = data.make_clean(batch, views=False).clean
        made = data.make_views(batch)
        for number, view in enumerate(made.views.chunk(made.per_image), 1):
            columns[f"epoch {epoch}\nview {number}"] = view
    rows = len(columns["clean"])  # fewer than `some` where bad images are skipped
    figure = Figure(
        figsize=(max(1.1 * len(columns) + 0.3, 4), 1.1 * rows + 0.9), layout="constrained"
    )
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pixels) in enumerate(columns.items()):
        axes[0][column].set_title(title, fontsize=9)
        for row, image in enumerate(displayable(pixels, data)):
            axes[row][column].imshow(image, cmap="gray", vmin=0, vmax=1)
            axes[row][column].set_axis_off()
    figure.suptitle(
        f"{data.dataset}, train split, seed {data.seed}\n"
        f"an image a row, {made.per_image} views of it an epoch"
        + (f"; the mean of {data.channels} bands" if data.channels not in (1, 3) else ""),
        fontsize=10,
    )
    return figure


def displayable(images: Tensor, data: ContrastiveDataModule) -> list[Any]:
    """Normalised images as matplotlib takes them.

    Args:
        images: `float [B, C, S, S]`, as views and clean images are.
        data: whose mean and standard deviation they have.

    Returns:
        B arrays from 0 to 1, `[S, S, 3]`, or `[S, S]` of gray images; of any other number of
        channels, their mean.
    """
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    shown = (images.cpu() * std + mean).clamp(0, 1)
    if shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True)
    return [image.permute(1, 2, 0).squeeze(-1).numpy() for image in shown]
