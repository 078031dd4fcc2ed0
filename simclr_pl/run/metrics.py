"""`metrics.csv`: every logged number, a row a step, on disk as soon as it is logged."""

import csv
import io
import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from simclr_pl.writing import cannot_write, make_folder, whole

RESUME = "--resume goes on from the last checkpoint"
"""What an error adds where a number cannot be written."""


class MetricsFile(Logger):
    """Logs to a CSV file that survives a kill and a resume.

    Lightning's CSVLogger keeps rows in memory between flushes and deletes the file of the run it
    continues. Here each row is written at once, and a resume cuts the file back to its checkpoint.

    Args:
        path: the file.
        resume_at: keep only the rows of steps before this one; `None` starts a new file.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = ["step", "epoch"]
        self._resume_at = resume_at
        self._opened = False
        self._count = 0
        self._refused: set[str] = set()
        self._last: tuple[int, dict[str, Any]] = (0, {})  # the last row: where it begins, its cells

    @property
    def name(self) -> str:
        """Lightning's hook: loggers have names."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning's hook: there is one version."""
        return ""

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row, or adds to the last row where the step is the same; new names widen the file.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            self._log(metrics, step)
        except OSError as error:
            raise cannot_write(self.path, error, then=RESUME) from error

    def _log(self, metrics: Mapping[str, float], step: int | None) -> None:
        if not self._opened:
            self._open()
        metrics = self._numbers(metrics)
        if step is None:  # then the numbers belong to the last row
            step = int(self._last[1].get("step", 0))
        new = [name for name in metrics if name not in self._columns]
        if new:
            rows = read_metrics(self.path)
            self._columns += new
            self._rewrite(rows)
        start, row = self._last
        with self.path.open("r+", newline="", encoding="utf-8") as file:
            if row.get("step") != str(int(step)):
                start, row = file.seek(0, os.SEEK_END), {"step": str(int(step))}
                self._count += 1
            row |= {n: str(int(value) if n == "epoch" else value) for n, value in metrics.items()}
            file.seek(start)
            csv.DictWriter(file, self._columns).writerow(row)
            file.truncate()
        self._last = (start, row)

    @rank_zero_only
    def sync(self) -> int:
        """Brings all rows to the disk, and returns how many there are.

        A resume goes on behind its checkpoint, and would not make up for a row that is lost.
        """
        if not self._opened:
            self._open()
        try:
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error, then=RESUME) from error
        return self._count

    def _numbers(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The metrics that are numbers; the first of another type is named, once for each name."""
        numbers = {}
        for name, value in metrics.items():
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError):
                if name not in self._refused:
                    sys.stdout.write(f"warning: {name} is left out of {self.path}: no number\n")
                self._refused.add(name)
        return numbers

    def _open(self) -> None:
        rows: list[dict[str, str]] = []
        if self._resume_at is not None:
            rows = rows_before(self.path, self._resume_at)
            self._columns = [*dict.fromkeys([*self._columns, *itertools.chain(*rows)])]
        make_folder(self.path.parent)
        self._rewrite(rows)
        self._opened = True

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Writes all rows anew, in one rename: a kill leaves the old file or the new one."""
        with whole(self.path, then=RESUME) as binary:
            file = io.TextIOWrapper(binary, encoding="utf-8", newline="")
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            for row in rows:
                self._last = (file.tell(), dict(row))
                writer.writerow(row)
            file.detach()
        self._count = len(rows)


def rows_before(path: Path, step: int) -> list[dict[str, str]]:
    """The rows of the steps before one; of a file that is lost or broken, those that are left."""
    try:
        rows = read_metrics(path)
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < step]


def say_lost(path: Path, step: int, logged: int) -> None:
    """Says how many rows a resumed run has lost, if it has.

    Args:
        path: of `metrics.csv`.
        step: from which the run goes on.
        logged: rows of the steps before it, as its checkpoint knows them.
    """
    lost = logged - len(rows_before(path, step))
    if lost > 0:
        sys.stdout.write(
            f"{path} has lost {lost} of the {logged} rows logged before step {step}: the run goes "
            "on, and its curves have a gap\n"
        )


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv`, each with the columns that it has a value for.

    A row that a kill has cut short is left out, and so is one without a step, of an older version.
    """
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    table = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not table:
        return []
    head = table[0]
    rows = [
        {name: value for name, value in zip(head, row, strict=True) if value}
        for row in table[1:]
        if len(row) == len(head)
    ]
    return [row for row in rows if row.get("step", "").lstrip("-").isdecimal()]
