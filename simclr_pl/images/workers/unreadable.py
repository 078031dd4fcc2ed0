"""Images that could not be read: each is printed and recorded once, and too many end the run."""

import csv
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from simclr_pl.core.errors import UserError
from simclr_pl.locks import alone

MOST = 0.01
"""Largest share of a set's images that may be bad."""

NAMED = 3
"""Images that are named on the screen; the run's `left_out.csv` names all of them."""

LEFT_OUT = "left_out.csv"
"""The file in a run directory that names bad images, with columns path and reason."""


class Unreadable:
    """The bad images of a data set, over all ranks, workers and resumes of a run.

    Args:
        root: folder of the data set, or its name, which its images' names contain.
        images: number of images of all splits together.
        file: the run's `left_out.csv`; `None` without a run.
    """

    def __init__(self, root: str | Path, images: int, file: Path | None = None) -> None:
        self.root, self.images, self.file = root, images, file
        self.listed: list[Sequence[Path]] = []
        """Each split's files, of a data set that is no folder; empty for a folder."""
        is_folder = isinstance(root, Path)
        self.lists = f"python -m simclr_pl pack {root} --check" if is_folder else ""
        """The command that lists all bad images; empty where there is none."""
        self._known: set[str] = set()

    def add(self, path: str | Path, why: str) -> None:
        """Records an image that could not be read, unless it is known.

        Raises:
            UserError: more than `MOST` of the images are bad.
        """
        name = str(path)
        if name in self._known:
            return
        self._known.add(name)
        self._say(name, why)
        bad = self._known | self._written(name, why)
        if len(bad) > MOST * self.images:
            raise UserError(
                f"{len(bad)} of {self.images} images of {self.root} cannot be read, more than "
                f"{MOST:.0%} (the last one: {name}, {why}): {self._listed}remove them or save "
                "them again"
            )

    @property
    def _listed(self) -> str:
        """How to list all bad images, as a part of the sentence; or empty."""
        return f"list all with {self.lists}, and " if self.lists else ""

    def _say(self, name: str, why: str) -> None:
        count = len(self._known)
        if count <= NAMED:
            sys.stdout.write(f"{name} is left out ({why})\n")
        elif count == NAMED + 1:
            where = self.file or self.lists
            named = f": {where} names them" if where else ""
            sys.stdout.write(f"more files are left out{named}\n")

    def _written(self, name: str, why: str) -> set[str]:
        """Adds a name to the run's file, and returns all names of this data set in the file."""
        if self.file is None:
            return set()
        lock = self.file.with_name(f".{self.file.name}.lock")
        how: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        try:
            with alone(lock, f"to write {self.file}"), self.file.open("a+", **how) as file:
                file.seek(0)
                names = {row[0] for row in csv.reader(file) if row}
                if name not in names:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerows([] if names else [("path", "reason")])
                    writer.writerow((name, why))
        except OSError as error:
            sys.stdout.write(f"{self.file} cannot be written ({error.strerror})\n")
            return set()
        if self.listed:
            return {path for path in map(str, chain(*self.listed)) if path in names} | {name}
        root = str(self.root)
        is_folder = isinstance(self.root, Path)
        return {n for n in names if (n.startswith(root) if is_folder else root in n)} | {name}
