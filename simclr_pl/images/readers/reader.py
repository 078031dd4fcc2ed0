"""A reader of data sets: its row in the table, and the splits that it returns."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import Source
from simclr_pl.core.distributed import rank_and_world
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import spelt_out

SPLITS = ("train", "val", "test")
"""Names of splits, in the order of their images in a packed set."""

OPTION = "data.dataset"

LIBRARIES = ("hub", "torchvision")
"""Libraries whose data sets have names here: `hub:uoft-cs/cifar10`, `torchvision:Flowers102`."""

SHARDS = "shards"
"""The name of WebDataset's tar files, the one data set of the table that takes arguments."""

_said: set[str] = set()


class Raw(NamedTuple):
    """What a reader returns: `Splits`, before a validation split is held out.

    Attributes:
        train: all of train, with its labels.
        val: the data set's own validation split, or `None`.
        test: the test split, or `None`.
        classes: names in the order of labels; empty where nothing is labelled.
    """

    train: Source
    val: Source | None = None
    test: Source | None = None
    classes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Source]:
        """The splits that there are, by name."""
        found = {name: getattr(self, name) for name in SPLITS}
        return {name: source for name, source in found.items() if source is not None}


class Entry(NamedTuple):
    """A row of the table of data sets.

    Attributes:
        read: reads the splits below a root, downloaded before.
        fetch: downloads through torchvision, or `None`. Its arguments are the root, where an
            archive may lie, and the folder that everything goes into.
        there: whether a root has all files, whole as far as that can be known.
        files: which files to put where, for people without internet.
        prepare: makes ready what is not fetched into the root, or `None`: a library's own cache,
            archives that lie below the root.
    """

    read: Callable[[Path], Raw]
    fetch: Callable[[Path, Path], None] | None = None
    there: Callable[[Path], bool] = Path.exists
    files: str = ""
    prepare: Callable[[Path], Any] | None = None


class InLibrary(NamedTuple):
    """A library's data set, as `data.dataset` names it.

    Attributes:
        library: one of `LIBRARIES`.
        name: what the library calls the data set.
        args: the arguments that were given with the name (`init_args`).
    """

    library: str
    name: str
    args: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


def in_library(given: Any) -> InLibrary | None:
    """The library's data set that `data.dataset` names; `None` for every other data set.

    Raises:
        UserError: a mapping of another form than `class_path` and `init_args`.
    """
    if not isinstance(given, str) and not (isinstance(given, Mapping) and "class_path" in given):
        return None
    name, args = spelt_out(given, OPTION)
    library, _, rest = str(name).partition(":")
    return InLibrary(library, rest, args) if rest and library in LIBRARIES else None


def classes_of(
    labels: Iterable[np.ndarray[Any, Any]], what: str
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Labels of several splits as places in their classes: the labels that occur in any of them.

    Args:
        labels: whole numbers `[N]` of each split; `UNLABELLED` stays, and makes no class.
        what: how the error calls the data set.

    Returns:
        `int64 [N]` of each split, and the classes' names, which are the numbers in rising order.

    Raises:
        UserError: another number below 0.
    """
    parts = [np.unique(part, return_inverse=True) for part in labels]
    # As Python's numbers: int64 and uint64 have no common type in NumPy.
    names = sorted({label for known, _ in parts for label in known.tolist()} - {UNLABELLED})
    if names and names[0] < 0:
        raise UserError(
            f"{what} has a label {names[0]}: only {UNLABELLED}, for unlabelled, may be below 0"
        )
    place_of = {UNLABELLED: UNLABELLED} | {label: place for place, label in enumerate(names)}
    places = [
        np.array([place_of[label] for label in known.tolist()], np.int64)[where]
        for known, where in parts
    ]
    return list(map(torch.from_numpy, places)), tuple(map(str, names))


def with_classes(sources: Mapping[str, Source], classes: Any, what: str) -> Raw:
    """The splits with their classes: the names that are given, else the numbers that are labels.

    Args:
        sources: by the splits' names.
        classes: a sequence of names in the order of labels; anything else is none.
        what: how the error calls the data set.

    Raises:
        UserError: as `classes_of`, without names.
    """
    if isinstance(classes, Sequence) and not isinstance(classes, str) and len(classes):
        return Raw(**sources, classes=tuple(map(str, classes)))
    labels = [source.labels.numpy(force=True) for source in sources.values()]
    places, names = classes_of(labels, what)
    placed = [source.relabel(of) for source, of in zip(sources.values(), places, strict=True)]
    return Raw(**dict(zip(sources, placed, strict=True)), classes=names)


def first_line(error: BaseException) -> str:
    """An exception's first line, to be quoted in a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")


def say_once(line: str) -> None:
    """Prints a line about the data, on rank 0, however often the data are read."""
    # The launcher knows the rank where ranks have not met yet.
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    said = next((os.environ[name] for name in names if name in os.environ), "0")
    if rank_and_world()[0] == 0 and said == "0" and line not in _said:
        _said.add(line)
        sys.stdout.write(line + "\n")
