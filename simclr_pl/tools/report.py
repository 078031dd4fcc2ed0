"""`report`: pictures of a run's curves, also while it runs."""

import sys
from pathlib import Path

import matplotlib as mpl

from simclr_pl.errors import UserError
from simclr_pl.run.arguments import call
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.metrics import read_metrics

PANELS: dict[str, dict[str, str]] = {
    "NT-Xent loss": {"train/loss": "train (views)", "val/loss": "val (views, eval mode)"},
    "contrastive top-1": {"train/contrastive_top1": "positive nearer than every negative"},
    "online probe, top-1": {
        "probe/val_top1": "val (clean images)",
        "probe/train_top1": "train (augmented views)",
    },
    "learning rate": {"train/lr": "at each step"},
    "gradient norm": {"train/grad_norm": "before clipping"},
}

COLOURS = ("#0072B2", "#D55E00")
"""Blue and vermilion of Okabe & Ito (2008): told apart by everybody."""


def report(*, run_dir: str) -> Path:
    """Draws a run's curves to its pictures/curves.png.

    Args:
        run_dir: directory of the run, finished or not.

    Returns:
        The picture's path.

    Raises:
        UserError: no run there, or one that has logged nothing yet.
    """
    run = RunDirectory(Path(run_dir))
    if not run.metrics.is_file():
        raise UserError(
            f"{run.path} holds no metrics.csv: give the directory of a run as --run_dir"
        )
    rows = read_metrics(run.metrics)
    curves = {
        panel: {
            label: [(int(row["step"]), float(row[name])) for row in rows if name in row]
            for name, label in names.items()
        }
        for panel, names in PANELS.items()
    }
    curves = {panel: lines for panel, lines in curves.items() if any(lines.values())}
    if not curves:
        raise UserError(f"{run.metrics} holds no numbers yet: wait for the first log line")
    target = run.pictures / "curves.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    _draw(curves, str(run.path), target)
    sys.stdout.write(f"curves written to {target}\n")
    return target


def _draw(curves: dict[str, dict[str, list[tuple[int, float]]]], title: str, target: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(curves))
    height = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(4.2 * columns, 3.1 * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (panel, lines) in zip(axes.flat, curves.items(), strict=False):
        for colour, (label, points) in zip(COLOURS, lines.items(), strict=False):
            if points:
                steps, values = zip(*points, strict=True)
                marker = "o" if len(points) == 1 else None
                axis.plot(steps, values, color=colour, label=label, linewidth=1.5, marker=marker)
        axis.set(title=panel, xlabel="optimiser step")
        if "top-1" in panel:
            axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def run_cli(args: list[str]) -> None:
    """The command."""
    call(report, args)
