"""What a run leaves behind: its rows, checkpoints, and all files."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

RUN_FILES = {"config.yaml", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/data.npz"}
"""What a run writes, below its directory."""


def cells(directory: Path) -> list[list[str]]:
    """A run's metrics.csv without its timings, which no run shares: names, then each row's cells.

    Read with nothing but the standard library.
    """
    path = directory / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    head = table[0] if table else []
    timings = {place for place, name in enumerate(head) if name.startswith("speed/")}
    return [[cell for place, cell in enumerate(row) if place not in timings] for row in table]


def rows(directory: Path) -> list[dict[str, str]]:
    """Rows of a run's metrics.csv without its timings, each with what it has a value for."""
    head, *table = cells(directory) or [[]]
    return [{k: v for k, v in zip(head, row, strict=False) if v} for row in table]


def checkpoint(directory: Path, name: str = "last.ckpt") -> dict[str, Any]:
    """A checkpoint of a run."""
    path = directory / "checkpoints" / name
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two checkpoints hold the same weights, to the bit."""
    one, other = a["state_dict"], b["state_dict"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, with what is in it."""
    found = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def result(path: Path) -> dict[str, Any]:
    """What an evaluation has written."""
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded
