"""`views`: a picture of what the augmentation does to a few images."""

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from simclr_pl.batch import Batch
from simclr_pl.data.datamodule import ContrastiveDataModule
from simclr_pl.errors import UserError
from simclr_pl.run.arguments import call, data_of
from simclr_pl.run.directory import RunDirectory


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
    if images < 1 or epochs < 1:
        raise UserError("views needs at least 1 image and 1 epoch")
    run = RunDirectory(Path(run_dir)) if run_dir else None
    if run is not None and not run.config.is_file():
        raise UserError(f"{run.path} holds no run: give the directory of a run as --run_dir")
    files = [config] if isinstance(config, str) else config or []
    data = data_of([run.config] if run else [Path(file) for file in files])
    target = Path(out) if out else (run.pictures if run else Path()) / "views.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    _draw(data, images, epochs, target)
    sys.stdout.write(f"views of {images} images written to {target}\n")
    return target


def _draw(data: ContrastiveDataModule, images: int, epochs: int, target: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    source = data.splits.train
    some = torch.linspace(0, len(source) - 1, min(images, len(source))).long()
    columns: dict[str, Tensor] = {}
    for epoch in range(epochs):
        batch: Batch = next(iter(source.batches([some], epoch, "both")))
        if not columns:
            columns["clean"] = data.make_clean(batch, views=False).clean
        pair = data.make_views(batch)
        columns[f"epoch {epoch}\nview 1"], columns[f"epoch {epoch}\nview 2"] = (
            pair.first,
            pair.second,
        )
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    figure, axes = plt.subplots(
        len(some),
        len(columns),
        figsize=(1.1 * len(columns) + 0.3, 1.1 * len(some) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for column, (title, pixels) in enumerate(columns.items()):
        axes[0][column].set_title(title, fontsize=9)
        for row, image in enumerate(pixels):
            shown = (image * std + mean).clamp(0, 1).permute(1, 2, 0).squeeze(-1)
            axes[row][column].imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
            axes[row][column].set_axis_off()
    figure.suptitle(f"{data.dataset}: an image a row, two views of it an epoch", fontsize=10)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def run_cli(args: list[str]) -> None:
    """The command."""
    call(views, args)
