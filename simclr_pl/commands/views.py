"""`views`: a picture of what the augmentation does to a few images."""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg

from simclr_pl.commandline.call import call, data_of
from simclr_pl.core.errors import UserError
from simclr_pl.core.paths import expanded
from simclr_pl.pictures.views import DPI, draw_views
from simclr_pl.run.directory import RunDirectory, file_to_write
from simclr_pl.writing import whole

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
    run = RunDirectory(run_dir) if run_dir else None
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
    data = data_of([run.config] if run else [expanded(file) for file in files])
    target = file_to_write(str(target))
    try:
        figure = draw_views(data, images, epochs)
        with whole(target, "--out") as file:
            figure.savefig(file, dpi=DPI, format=target.suffix[1:] or "png")
    finally:
        data.teardown()
    sys.stdout.write(f"views of {images} images written to {target}\n")
    return target


def run_cli(args: list[str]) -> None:
    """The command."""
    call(views, args)
