"""Manifests: tables of image files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_manifest(path: Path, rows: Iterable[Sequence[object]], header: str = "path") -> Path:
    """Writes a CSV with those columns (`path,label,...`)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def grouped(folder: Path, groups: int, images: int, classes: int = 2) -> list[list[str]]:
    """Rows `path, label, group` of empty files: classes take turns within a group."""
    rows = []
    for group in range(groups):
        (folder / f"p{group}").mkdir(parents=True, exist_ok=True)
        for number in range(images):
            path = folder / f"p{group}" / f"{number}.png"
            path.touch()
            name = str(path.relative_to(folder))
            rows.append([name, f"class{number % classes}", f"patient{group}"])
    return rows
