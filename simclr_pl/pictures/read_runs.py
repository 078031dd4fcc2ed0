"""Reads run directories, of runs finished or not: recipe, curves, results."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import name_of
from simclr_pl.core.paths import expanded
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.metrics import read_metrics
from simclr_pl.run.yaml_file import read_config
from simclr_pl.writing import printable


@dataclass(frozen=True)
class Run:
    """A run as its directory has it now.

    Attributes:
        directory: where it is.
        label: what to call it: the directory's name, or more of its path among runs of one name.
        config: `config.yaml`; empty where it isn't there.
        rows: of `metrics.csv`, numbers by name; empty before the first log line.
        results: of `results/*.json`, sorted by file name.
    """

    directory: RunDirectory
    label: str
    config: dict[str, Any]
    rows: list[dict[str, float]]
    results: list[dict[str, Any]]

    @property
    def metrics(self) -> list[str]:
        """Names of everything logged, in the order it first was."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in ("step", "epoch")]

    @property
    def seed(self) -> int | None:
        """The run's seed, as far as the configuration knows."""
        own = self.of("model", "seed")
        return self.config.get("seed_everything") if own is None else own

    @property
    def data(self) -> str:
        """The data set, as `data_name` has it."""
        name = self.of("data", "dataset")
        return data_name(name_of(name), self.of("data", "root")) if name else "data unknown"

    @property
    def epochs(self) -> int:
        """Epochs that have logged something, the running one included."""
        return 1 + max((int(row["epoch"]) for row in self.rows if "epoch" in row), default=-1)

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps an epoch: exact once an epoch has ended, which logs a row."""
        ratios = [(row["step"] + 1) / (row["epoch"] + 1) for row in self.rows if "epoch" in row]
        return max(ratios, default=1.0)

    def of(self, group: str, key: str) -> Any:
        """A value of the recipe, `None` where there is none."""
        return (self.config.get(group) or {}).get(key)

    @property
    def compares_views(self) -> bool:
        """Whether the loss is NT-Xent, whose chance level follows from the batch."""
        return self.of("model", "objective") in (None, "nt_xent")

    def points(self, name: str) -> list[tuple[float, float]]:
        """Optimiser steps, and the values logged at them."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def last(self, name: str) -> tuple[int, float] | None:
        """The epoch (counted from 1) of the last value logged, and the value."""
        rows = [row for row in self.rows if name in row]
        return (int(rows[-1].get("epoch", -1)) + 1, rows[-1][name]) if rows else None


def data_name(dataset: str, root: str) -> str:
    """The name of the data, for `folder` with the folder's name."""
    if dataset not in ("folder", "manifest", "packed", "npz", "shards"):
        return dataset
    return f"{dataset} {printable(Path(root).name)}"


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Reads run directories; one given twice counts once.

    Args:
        paths: of the directories.

    Raises:
        UserError: none given; one that holds no run; a file in it that cannot be read; no number
            in any of them.
    """
    if not paths:
        raise UserError("report needs a run directory: report runs/mine")
    known = {path.resolve(): path for path in map(expanded, paths)}
    names = [path.name for path in known]
    labels = [
        place.name if names.count(place.name) == 1 else str(path) for place, path in known.items()
    ]
    runs = [_read(RunDirectory(p), n) for p, n in zip(known.values(), labels, strict=True)]
    if not any(run.metrics for run in runs):
        raise UserError(
            f"{' and '.join(str(run.directory.metrics) for run in runs)} "
            "holds no numbers yet: wait for the first log line"
        )
    return runs


def _read(directory: RunDirectory, label: str) -> Run:
    if not directory.holds_run:
        raise UserError(f"{directory.path} holds no run: give the directory of a run")
    return Run(
        directory,
        printable(label),
        read_config(directory.config) if directory.config.is_file() else {},
        _numbers(directory.metrics) if directory.metrics.is_file() else [],
        [_result(path) for path in sorted(directory.results.glob("*.json"))],
    )


def _numbers(path: Path) -> list[dict[str, float]]:
    try:
        return [{name: float(text) for name, text in row.items()} for row in read_metrics(path)]
    except ValueError as error:
        raise UserError(
            f"{path} has a cell that is no number ({error}): restore the file, or remove the row"
        ) from error


def _result(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): remove it, and evaluate once more"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a result: remove it, and evaluate once more")
    return content
