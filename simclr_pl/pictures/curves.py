"""Curves of what was logged: of one run, a panel a topic; of several, a panel a metric."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from simclr_pl.pictures.literal import literal
from simclr_pl.pictures.read_runs import Run

OKABE_ITO = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442",
)  # fmt: skip
"""Eight colours that everybody tells apart (Okabe & Ito 2008), yellow, the faintest, last."""

LINES = ("-", "--", "-.", ":")
"""For more lines than colours."""

TOP1 = {
    "contrastive top-1": {"train/contrastive_top1": "positive nearer than every negative"},
    "online probe, top-1": {
        "probe/val_top1": "val (clean images)",
        "probe/train_top1": "train (augmented views)",
    },
    "kNN, top-1 on val": {},  # one line a k, see `_topics`
    "linear evaluation, top-1": {
        "linear/val_top1": "val (clean images), frozen encoder",
        "linear/test_top1": "test, the last step's alone",
    },
    "fine-tuning, top-1": {"finetune/val_top1": "val (clean images)"},
}

TOPICS: dict[str, dict[str, str]] = {
    "loss": {"train/loss": "train (views)", "val/loss": "val (views, eval mode)"},
    "cross-entropy of fine-tuning": {"finetune/loss": "train (crops and flips)"},
    **TOP1,
    "loss less its chance level": {"health/loss_over_chance": "train/loss - health/chance_loss"},
    "effective rank of features (RankMe)": {"health/rankme": "up to the features' width"},
    "alignment (0: views agree)": {"health/alignment": "mean squared distance of positives"},
    "uniformity (lower: more even)": {"health/uniformity": "log of the mean Gaussian potential"},
    "cosine similarity": {
        "health/positive_similarity": "positives",
        "health/negative_similarity": "negatives",
    },
    "standard deviation (0: collapse)": {
        "health/feature_std": "features",
        "health/projection_std": "projections",
    },
    "learning rate": {"train/lr": "at each step"},
    "gradient norm": {"train/grad_norm": "before clipping"},
    "images a second": {"speed/images_per_s": "over all devices"},
    "share of time waiting for data": {"speed/data_wait": "0 is none"},
    "GPU memory, bytes": {"speed/gpu_memory_bytes": "at its peak, first device"},
}

SHARES = (*TOP1, "share of time waiting for data")
"""From 0 to 1, and drawn so."""

FROM_ZERO = ("standard deviation (0: collapse)", "images a second", "GPU memory, bytes")
"""Topics drawn from 0: the height of a line matters, small changes don't."""


def draw_curves(run: Run) -> Figure:
    """Everything a run has logged that `TOPICS` knows, a panel a topic.

    Args:
        run: with at least one number.
    """
    topics = {
        title: {name: label for name, label in lines.items() if name in run.metrics}
        for title, lines in _topics(run).items()
    }
    topics = {title: lines for title, lines in topics.items() if lines}
    levels = _chance_levels(run)
    figure, axes = _grid(len(topics), 3, legend=0.45)
    for axis, (title, lines) in zip(axes, topics.items(), strict=True):
        for place, (name, label) in enumerate(lines.items()):
            _line(axis, run.points(name), place, label)
        if title in levels:
            height, label = levels[title]
            axis.axhline(height, color="black", linestyle=":", linewidth=1.2, label=label)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("optimiser step", fontsize=9)
        if title in SHARES:
            axis.set_ylim(0, 1.02)
        elif title in FROM_ZERO:
            axis.set_ylim(0, 1.08 * max(axis.dataLim.ymax, 1e-12))
        axis.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), fontsize=8, frameon=False)
    figure.suptitle(
        f"{_of(run)}, epoch {run.epochs}, seed {run.seed}; accuracies are fractions", fontsize=11
    )
    return figure


def draw_comparison(runs: Sequence[Run]) -> Figure:
    """Several runs over each other, a panel a metric, over epochs: batch sizes may differ.

    Args:
        runs: with at least one number in all of them together.
    """
    known = itertools.chain(*(_topics(run).values() for run in runs))
    names = dict.fromkeys(itertools.chain(*known))
    shown = [name for name in names if any(name in run.metrics for run in runs)]
    figure, axes = _grid(len(shown), 3, legend=0)
    for axis, name in zip(axes, shown, strict=True):
        for place, run in enumerate(runs):
            points = [((step + 1) / run.steps_per_epoch, v) for step, v in run.points(name)]
            _line(axis, points, place, literal(run.label))
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("epoch", fontsize=9)
        if "_top" in name:
            axis.set_ylim(0, 1.02)
    handles = [
        Line2D([], [], label=f"{_of(run)}, seed {run.seed}", **_style(place))
        for place, run in enumerate(runs)
    ]
    columns = max(1, min(3, len(runs)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=10)
    return figure


def _of(run: Run) -> str:
    return literal(f"{run.label}: {run.data}")


def _chance_levels(run: Run) -> dict[str, tuple[float, str]]:
    """Height and label of the line at chance, by topic."""
    levels = {"loss less its chance level": (0.0, "chance")}
    batch, stated = run.of("data", "batch_size"), run.points("health/chance_loss")
    if isinstance(batch, int) and run.compares_views:
        chance = math.log(2 * batch - 1)
        levels["loss"] = chance, f"chance of train, log(2 x {batch} - 1) = {chance:.2f}"
    elif stated:
        levels["loss"] = stated[-1][1], f"chance of train, {stated[-1][1]:.2f}"
    return levels


def _topics(run: Run) -> dict[str, dict[str, str]]:
    """`TOPICS`, with a line for each k that kNN was monitored with."""
    topics = {title: dict(lines) for title, lines in TOPICS.items()}
    first = next(iter(run.of("knn", "k") or [20]))
    for name in run.metrics:
        if match := re.fullmatch(r"knn(\d*)/val_top1", name):
            topics["kNN, top-1 on val"][name] = f"k = {match[1] or first}"
    return topics


def _grid(count: int, columns: int, legend: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows, each with so many inches for a legend below it."""
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = Figure(
        figsize=(max(4.2 * columns, 6.5), (2.8 + legend) * rows + 0.5), layout="constrained"
    )
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure, axes[:count]


def _style(place: int) -> dict[str, Any]:
    """Colour and dashes of a line: both change from line to line, and no pair recurs soon."""
    colours = len(OKABE_ITO)
    return {
        "color": OKABE_ITO[place % colours],
        "linestyle": LINES[(place + place // colours) % len(LINES)],
        "linewidth": 1.6,
    }


def _line(axis: Axes, points: list[tuple[float, float]], place: int, label: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        # Few points are shown as such: a line alone would claim more, and one point has none.
        marker = "o" if len(points) < 10 else None
        axis.plot(x, y, label=label, marker=marker, markersize=4, **_style(place))
