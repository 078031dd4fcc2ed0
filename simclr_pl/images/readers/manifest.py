"""A manifest as a data set: a table of image files with their classes, splits and groups."""

import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.listing import LeftOut, is_taken
from simclr_pl.images.files.sample import look_at
from simclr_pl.images.groups import group_images
from simclr_pl.images.hashes import hashes
from simclr_pl.images.names import Array, Names, Paths, order_of
from simclr_pl.images.readers.folder import CALLED, read_folder
from simclr_pl.images.readers.reader import SPLITS, Raw, say_once
from simclr_pl.images.readers.table import COLUMNS, NAMED, Table, Words, read_table
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.images.workers.unreadable import MOST
from simclr_pl.writing import printable


class Rows(NamedTuple):
    """Rows of a manifest.

    Attributes:
        names: the paths as they are written, normalised (`./a//b.png` is `a/b.png`).
        paths: where the files are.
        labels: names of classes; empty for none.
        splits: train, val or test; empty is train.
        groups: names of groups; empty for none.
    """

    names: Names
    paths: Paths
    labels: Words
    splits: Words
    groups: Words

    def at(self, index: Array) -> "Rows":
        """The rows at `index`."""
        names, of = self.names.at(index), self.paths
        paths = Paths(of.folder, names) if of.names is self.names else of.at(index)
        return Rows(names, paths, *(words.at(index) for words in self[2:]))


def read_manifest(
    root: Path,
    *,
    labelled: bool = True,
    numbers: bool = False,
    skip: bool = False,
    left: LeftOut | None = None,
) -> Raw:
    """Reads the files that a table lists, with columns `path`, and perhaps `label, split, group`.

    Paths are relative to the manifest's folder, or absolute. The order of the rows says nothing:
    images are sorted as those of a folder are, and a folder's files have the folder's names. A line
    says how many images there are, how many files were left out, and why.

    Args:
        root: the table, see `read_table`.
        labelled: whether labels are read; else nothing is labelled.
        numbers: whether files of numbers (NumPy, HDF5, DICOM) are images, too.
        skip: whether up to `MOST` of the files may be missing: each is a bad image in its turn.
        left: counts the files that are left out, with the reason.

    Raises:
        UserError: a table that cannot be read; paths that are empty, there twice, missing or of
            folders; another split than train, val and test; no image of train; a class that train
            doesn't have; a group in two splits.
    """
    left = LeftOut(numbers=numbers) if left is None else left
    table = read_table(root)
    rows, has_groups = _rows(root, table), "group" in table.words
    del table  # which would keep paths as they are written
    _check_files(root, rows, skip=skip)
    count = len(rows.names)
    taken = np.fromiter((is_taken(path, left) for path in rows.paths.texts()), bool, count)
    rows = rows.at(np.flatnonzero(taken))
    rows = rows.at(order_of(rows.names))
    of_split = [word or "train" for word in rows.splits.words]
    members = {
        name: rows.at(np.flatnonzero(np.array([of == name for of in of_split])[rows.splits.codes]))
        for name in SPLITS
    }
    if not members["train"].names:
        raise UserError(
            f"{root} has no image of train{f' (left out: {left})' if left.counts else ''}: write "
            "train, or nothing, into column split"
        )
    members = {name: of for name, of in members.items() if of.names}
    classes = _classes(root, members) if labelled else ()
    place = {name: number for number, name in enumerate(classes)}
    number = torch.tensor([place.get(word, UNLABELLED) for word in rows.labels.words])
    splits = {
        name: ImageFiles(of.paths, number[torch.from_numpy(of.labels.codes).long()], of.names)
        for name, of in members.items()
    }
    groups = {name: of.groups.rows() for name, of in members.items()}
    known = group_images(str(root), splits, groups) if has_groups else None
    moving = "" if numbers else look_at(root, [split.paths for split in splits.values()])
    parts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    say_once(
        f"{root}: {len(rows.names)} images{f' ({parts})' if len(splits) > 1 else ''}"
        f"{'' if known is None else f' in {known} groups'}; "
        f"{f'left out: {left}' if left.counts else 'nothing is left out'}{moving}"
    )
    return Raw(**splits, classes=classes)


def read_listed(root: Path, left: LeftOut | None = None) -> Raw:
    """Reads a manifest, where `root` is a file, or else a folder of images.

    Raises:
        UserError: as `read_manifest` and `read_folder`.
    """
    return read_manifest(root, left=left) if root.is_file() else read_folder(root, left=left)


def _rows(root: Path, table: Table) -> Rows:
    written = table.paths
    empty = np.flatnonzero(written.sizes() == 0) + 1
    if len(empty):
        raise UserError(
            f"{root}: {len(empty)} of {len(written)} rows have no path (row {empty[0]} behind the "
            "header is the first one): give each row its file"
        )
    nothing = Words([""], np.zeros(len(written), np.int32))
    label, split, group = (table.words.get(name, nothing) for name in COLUMNS[1:])
    for word in sorted({*split.words} - {"", *SPLITS}):
        meant = next((name for name, called in CALLED.items() if word.casefold() in called), "")
        near = meant or next(iter(difflib.get_close_matches(word.lower(), SPLITS, 1)), "")
        raise UserError(
            f"{root}: column split has '{printable(word)}', but splits are called train, val and "
            f"test{f': did you mean {near}?' if near else ''}"
        )
    names = Names.of(map(os.path.normpath, written))
    if np.array_equal(names.letters, written.letters):  # one buffer for both
        written = names
    return Rows(names, Paths(root.parent, written), label, split, group)


def _check_files(root: Path, rows: Rows, *, skip: bool) -> None:
    """Refuses files that are missing or there twice, and folders: all of them at once."""
    missing, no_files = [], []
    first = {place: alike[0] for alike in _alike(rows.paths) for place in alike[1:]}
    for place, path in enumerate(rows.paths.texts()):
        if place in first:
            continue
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - of millions
        except OSError:
            missing.append(place)
        else:
            if not stat.S_ISREG(mode):
                no_files.append(place)
    if skip and len(missing) <= MOST * len(rows.names):
        missing = []
    wrong = (
        ([*first], "paths are there twice", "keep one row a file"),
        (
            missing,
            f"of {len(rows.names)} files are missing",
            f"paths are absolute, or relative to {root.parent.absolute()}: put the files there, or "
            "remove their rows",
        ),
        (no_files, "paths are no files (folders, perhaps)", "list the images one by one"),
    )
    for places, what, remedy in wrong:
        if places:
            some = [sorted({first.get(place, place), place}) for place in sorted(places)[:NAMED]]
            named = [b" and ".join({rows.names[at]: 0 for at in of}) for of in some]
            shown = ", ".join(printable(os.fsdecode(name)) for name in named)
            more = ", ..." if len(places) > NAMED else ""
            raise UserError(f"{root}: {len(places)} {what} ({shown}{more}): {remedy}")


def _alike(paths: Paths) -> Iterator[list[int]]:
    """Places of paths that lead to one name in one folder, where there are several."""
    full = (os.fsencode(os.path.abspath(path)) for path in paths.texts())  # noqa: PTH100 - likewise
    hashed = hashes(full, 0)
    order = hashed.argsort(kind="stable")
    (again,) = np.nonzero(hashed[order[1:]] == hashed[order[:-1]])
    for run in np.split(again, np.flatnonzero(np.diff(again) > 1) + 1) if len(again) else ():
        yield order[[*run, run[-1] + 1]].tolist()


def _classes(root: Path, members: dict[str, Rows]) -> tuple[str, ...]:
    """The names of train's labels, sorted; refuses classes that train does not have."""
    labels = {name: of.labels.there() for name, of in members.items()}
    for name, of in labels.items():
        if unseen := sorted(of - labels["train"]):
            raise UserError(
                f"{root}: {len(unseen)} classes of {name} have no image in train "
                f"({', '.join(map(printable, unseen[:NAMED]))}{', ...' * (len(unseen) > NAMED)}): "
                "remove their rows or their labels, or give train such images"
            )
    return tuple(sorted(labels["train"]))
