"""A reader of data sets: its row in the table, and the splits that it returns."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from simclr_pl.core.data.sources import Source
from simclr_pl.core.distributed import rank_and_world

_said: set[str] = set()


class Raw(NamedTuple):
    """What a reader finds: `Splits`, before a validation split is held out.

    Attributes:
        train: all of train, with its labels.
        test: the test split, or `None`.
        classes: names in the order of labels; empty where nothing is labelled.
        val: the data set's own validation split, or `None`.
    """

    train: Source
    test: Source | None
    classes: tuple[str, ...]
    val: Source | None = None


class Entry(NamedTuple):
    """A row of the table of data sets.

    Attributes:
        read: reads the splits below a root, downloaded before.
        fetch: downloads through torchvision, or `None`: is given the root, where an archive may
            be, and the folder to put everything into.
        there: whether a root has all files, whole as far as that can be known.
        files: which files to put where, for people without internet.
    """

    read: Callable[[Path], Raw]
    fetch: Callable[[Path, Path], None] | None = None
    there: Callable[[Path], bool] = Path.exists
    files: str = ""


def first_line(error: BaseException) -> str:
    """An exception's first line, to be quoted in a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")


def say_once(line: str) -> None:
    """Prints a line about the data, on rank 0, however often they are read."""
    if _is_first() and line not in _said:
        _said.add(line)
        sys.stdout.write(line + "\n")


def _is_first() -> bool:
    """Whether this process is rank 0, by what its launcher says where ranks haven't met yet."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    said = next((os.environ[name] for name in names if name in os.environ), "0")
    return rank_and_world()[0] == 0 and said == "0"
