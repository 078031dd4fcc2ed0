"""`views`: a picture of what the augmentation does to a few images."""

import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from simclr_pl.batch import Batch
from simclr_pl.data.datamodule import ContrastiveDataModule
from simclr_pl.errors import UserError
from simclr_pl.files import expanded, whole
from simclr_pl.run.arguments import call, data_of
from simclr_pl.run.directory import RunDirectory, file_to_write

DPI = 110
"""Of every picture: legible at 100 %."""


MOST = 100
"""Images, and epochs, that a picture has room for."""


def views(
    *,
    config: str | list[str] | None = None,
    run_dir: str | None = None,
    out: str | None = None,
    images: int = 8,
    epochs: int = 3,
) -> Path:
    """Draws images of the training split beside their two views, in a few epochs.

    Args:
        config: a configuration file, or `[A.yaml, B.yaml]`, of which later ones win.
        run_dir: directory of a run, instead of a configuration; the picture goes to its pictures/.
        out: the picture's file (default: views.png, in the run's pictures/ where there is one).
        images: how many images, a row each.
        epochs: how many epochs, a pair of columns each.

    Returns:
        The picture's path.

    Raises:
        UserError: neither a configuration nor a run, or numbers below 1.
    """
    if (config is None) == (run_dir is None):
        raise UserError("views needs either --config FILE or --run_dir RUN")
    for name, value in (("images", images), ("epochs", epochs)):
        if not 1 <= value <= MOST:
            raise UserError(f"{name} is {value}, but must be from 1 to {MOST}")
    run = RunDirectory(Path(run_dir)) if run_dir else None
    if run is not None and not run.config.is_file():
        raise UserError(f"{run.path} holds no run: give the directory of a run as --run_dir")
    target = expanded(out) if out else (run.pictures if run else Path()) / "views.png"
    formats = FigureCanvasAgg.get_supported_filetypes()
    if target.suffix and target.suffix[1:].lower() not in formats:
        raise UserError(
            f"out is {out}, but pictures are written as {', '.join(sorted(formats))}: give a file "
            "with one of these endings"
        )
    files = [config] if isinstance(config, str) else config or []
    data = data_of([run.config] if run else [Path(file) for file in files])
    target = file_to_write(str(target))
    try:
        figure = draw_views(data, images, epochs)
        with whole(target, "--out") as file:
            figure.savefig(file, dpi=DPI, format=target.suffix[1:] or "png")
    finally:
        data.teardown()
    sys.stdout.write(f"views of {images} images written to {target}\n")
    return target


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
    figure = Figure(
        figsize=(max(1.1 * len(columns) + 0.3, 4), 1.1 * len(some) + 0.9), layout="constrained"
    )
    axes = figure.subplots(len(some), len(columns), squeeze=False)
    for column, (title, pixels) in enumerate(columns.items()):
        axes[0][column].set_title(title, fontsize=9)
        for row, image in enumerate(displayable(pixels, data)):
            axes[row][column].imshow(image, cmap="gray", vmin=0, vmax=1)
            axes[row][column].set_axis_off()
    figure.suptitle(
        f"{data.dataset}, train split, seed {data.seed}\n"
        f"an image a row, {made.per_image} views of it an epoch",
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


def run_cli(args: list[str]) -> None:
    """The command."""
    call(views, args)
