"""Runs of a sweep in a table, the best first: Markdown to read, CSV to go on with."""

import csv
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

from simclr_pl.commands.sweep.space import Search
from simclr_pl.pictures.page import NONE, Table
from simclr_pl.writing import write_text

PROTOCOLS = {
    "probe/val": "online probe (a linear head trained alongside) on clean images of val",
    "probe/train": "online probe on augmented training views",
    "knn": "nearest training images vote for clean images of val",
    "linear/val": "linear evaluation of the frozen encoder on val",
    "val/loss": "loss on views of validation images, eval mode",
    "train/": "on the training batches",
    "health/": "monitor of the representation",
    "finetune/val": "fine-tuned network on clean images of val",
}
"""By the beginning of a metric's name, which numbers it compares."""


class Trial(NamedTuple):
    """A run of a sweep that has ended.

    Attributes:
        run: its directory's name.
        values: of the parameters.
        metric: the last value logged, if any.
        epoch: the one it was logged in, counted from 1.
        failure: why there is nothing to compare; empty where all is well.
    """

    run: str
    values: dict[str, Any]
    metric: float | None
    epoch: int | None
    failure: str


def ranked(trials: list[Trial], goal: str) -> list[Trial]:
    """The best first; behind them what is no number, then what failed, in the order of the runs."""

    def place(trial: Trial) -> tuple[int, float]:
        if trial.failure or trial.metric is None:
            return (2, 0.0)
        if math.isnan(trial.metric):
            return (1, 0.0)
        return (0, -trial.metric if goal == "maximize" else trial.metric)

    return sorted(trials, key=place)


def write_tables(folder: Path, search: Search, trials: list[Trial], planned: int) -> str:
    """Writes runs.md and runs.csv, each in one rename.

    Args:
        folder: of the sweep.
        search: the sweep.
        trials: runs that have ended.
        planned: runs of the whole sweep.

    Returns:
        The text of runs.md.
    """
    order = ranked(trials, search.goal)
    text = _markdown(search, order, planned)
    for name, content in (("runs.md", text), ("runs.csv", _csv(search, order))):
        write_text(folder / name, content)
    return text


def _markdown(search: Search, trials: list[Trial], planned: int) -> str:
    rows = [
        [
            trial.run,
            *(_short(trial.values[name]) for name in search.searched),
            NONE if trial.failure or trial.metric is None else f"{trial.metric:.4f}",
            NONE if trial.failure or trial.epoch is None else str(trial.epoch),
            f"failed: {trial.failure}" if trial.failure else "finished",
        ]
        for trial in trials
    ]
    table = Table(["run", *search.searched, search.metric, "epoch", "state"], rows)
    return f"{table.markdown()}\n\n{_note(search, trials, planned)}\n"


def _note(search: Search, trials: list[Trial], planned: int) -> str:
    """Lines below the table that say what the numbers are, and what they are not."""
    name = search.metric
    what = next((text for start, text in PROTOCOLS.items() if name.startswith(start)), "as logged")
    lines = [
        f"{len(trials)} of {planned} runs of {search.path.name} ({search.method} search), sorted "
        f"by `{name}` ({search.goal}): {what}; the last value that each run logged, at the epoch "
        "shown, not its best.",
        "The best of several runs looks better than it is: its lead includes luck. Repeat it with "
        "other seeds, and score it on test once.",
    ]
    moving = {"model.temperature", "data.batch_size"} & set(search.searched)
    if name.endswith("loss") and moving:
        lines.append(
            f"Runs differ in {' and '.join(sorted(moving))}, which moves the loss itself: these "
            "losses don't compare."
        )
    return "\n".join(lines)


def _csv(search: Search, trials: list[Trial]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", *search.parameters, search.metric, "epoch", "state", "failure"])
    for trial in trials:
        state = "failed" if trial.failure else "finished"
        values = [trial.values[name] for name in search.parameters]
        number = (None, None) if trial.failure else (trial.metric, trial.epoch)
        writer.writerow([trial.run, *values, *number, state, trial.failure])
    return file.getvalue()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
