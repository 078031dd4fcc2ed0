"""A manifest as a data set: a table of image files with their classes, splits and groups."""

import difflib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.listing import LeftOut, is_taken
from simclr_pl.images.files.sample import look_at
from simclr_pl.images.groups import number_groups
from simclr_pl.images.readers.folder import CALLED, read_folder
from simclr_pl.images.readers.reader import SPLITS, Raw, say_once
from simclr_pl.images.readers.table import NAMED, read_table
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.writing import printable


class Row(NamedTuple):
    """A row of a manifest.

    Attributes:
        name: the path as it is written, normalised (`./a//b.png` is `a/b.png`).
        path: where the file is.
        label: name of the class; empty for none.
        split: train, val or test.
        group: name of the group; empty for none.
    """

    name: str
    path: str
    label: str
    split: str
    group: str

    @property
    def order(self) -> tuple[bytes, bytes]:
        """What images are sorted by, which gives a folder's files the folder's order."""
        first, slash, _ = self.name.partition("/")
        key = os.fsencode(self.name).replace(b"/", b"\0")
        return os.fsencode(first if slash else ""), key


def read_manifest(
    root: Path, *, labelled: bool = True, numbers: bool = False, left: LeftOut | None = None
) -> Raw:
    """Reads the files that a table lists, with columns `path`, and perhaps `label, split, group`.

    Paths are relative to the manifest's folder, or absolute. The order of the rows says nothing:
    images are sorted as those of a folder are, and a folder's files have the folder's names. A line
    says how many images there are, how many files were left out, and why.

    Args:
        root: the table, see `read_table`.
        labelled: whether labels are read; else nothing is labelled.
        numbers: whether files of numbers (NumPy, HDF5, DICOM) are images, too.
        left: counts the files that are left out, with the reason.

    Raises:
        UserError: a table that cannot be read; paths that are empty, there twice, missing or of
            folders; another split than train, val and test; no image of train; a class that train
            doesn't have; a group in two splits.
    """
    left = LeftOut(numbers=numbers) if left is None else left
    columns = read_table(root)
    rows = _rows(root, columns)
    _check_files(root, rows)
    rows = sorted((row for row in rows if is_taken(row.path, left)), key=lambda row: row.order)
    members = {name: [row for row in rows if row.split == name] for name in SPLITS}
    if not members["train"]:
        raise UserError(
            f"{root} has no image of train{f' (left out: {left})' if left.counts else ''}: write "
            "train, or nothing, into column split"
        )
    members = {name: of for name, of in members.items() if of}
    classes = _classes(root, members) if labelled else ()
    ids, group_names = number_groups([[row.group for row in of] for of in members.values()])
    grouped = "group" in columns
    if grouped:
        _check_groups(root, members)
    place = {name: number for number, name in enumerate(classes)}
    splits = {}
    for (name, of), groups in zip(members.items(), ids, strict=True):
        labels = torch.tensor([place.get(row.label, UNLABELLED) for row in of])
        names = [os.fsencode(row.name) for row in of]
        splits[name] = ImageFiles([Path(row.path) for row in of], labels, names=names)
        if grouped:
            splits[name].groups, splits[name].group_names = groups, group_names
    moving = "" if numbers else look_at(root, [split.paths for split in splits.values()])
    parts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    say_once(
        f"{root}: {len(rows)} images{f' ({parts})' if len(splits) > 1 else ''}"
        f"{f' in {len(group_names)} groups' if grouped else ''}; "
        f"{f'left out: {left}' if left.counts else 'nothing is left out'}{moving}"
    )
    return Raw(**splits, classes=classes)


def read_listed(root: Path, left: LeftOut | None = None) -> Raw:
    """Reads a manifest, where `root` is a file, or else a folder of images.

    Raises:
        UserError: as `read_manifest` and `read_folder`.
    """
    return read_manifest(root, left=left) if root.is_file() else read_folder(root, left=left)


def _rows(root: Path, columns: dict[str, list[str]]) -> list[Row]:
    written, folder = columns["path"], os.fspath(root.parent)
    empty = [number for number, path in enumerate(written, 1) if not path]
    if empty:
        raise UserError(
            f"{root}: {len(empty)} of {len(written)} rows have no path (row {empty[0]} behind the "
            "header is the first one): give each row its file"
        )
    nothing = [""] * len(written)
    label, split, group = (columns.get(name, nothing) for name in ("label", "split", "group"))
    for word in sorted(set(split) - {"", *SPLITS}):
        meant = next((name for name, called in CALLED.items() if word.casefold() in called), "")
        near = meant or next(iter(difflib.get_close_matches(word.lower(), SPLITS, 1)), "")
        raise UserError(
            f"{root}: column split has '{printable(word)}', but splits are called train, val and "
            f"test{f': did you mean {near}?' if near else ''}"
        )
    return [
        Row(os.path.normpath(path), os.path.join(folder, path), *more)  # noqa: PTH118 - of millions
        for path, *more in zip(
            written, label, [name or "train" for name in split], group, strict=True
        )
    ]


def _check_files(root: Path, rows: Sequence[Row]) -> None:
    """Refuses files that are missing or there twice, and folders: all of them at once."""
    found: dict[str, str] = {}
    twice, missing, no_files = [], [], []
    for row in rows:
        place = os.path.abspath(row.path)  # noqa: PTH100 - of millions
        if place in found:
            other = found[place]
            twice.append(row.name if other == row.name else f"{other} and {row.name}")
            continue
        found[place] = row.name
        try:
            mode = os.stat(row.path).st_mode  # noqa: PTH116 - of millions
        except OSError:
            missing.append(row.name)
        else:
            if not stat.S_ISREG(mode):
                no_files.append(row.name)
    wrong = (
        (twice, "paths are there twice", "keep one row a file"),
        (
            missing,
            f"of {len(rows)} files are missing",
            f"paths are absolute, or relative to {root.parent.absolute()}: put the files there, or "
            "remove their rows",
        ),
        (no_files, "paths are no files (folders, perhaps)", "list the images one by one"),
    )
    for names, what, remedy in wrong:
        if names:
            shown = ", ".join(map(printable, names[:NAMED]))
            more = ", ..." if len(names) > NAMED else ""
            raise UserError(f"{root}: {len(names)} {what} ({shown}{more}): {remedy}")


def _classes(root: Path, members: dict[str, list[Row]]) -> tuple[str, ...]:
    """The names of train's labels, sorted; refuses classes that train does not have."""
    labels = {name: {row.label for row in of} - {""} for name, of in members.items()}
    for name, of in labels.items():
        if unseen := sorted(of - labels["train"]):
            raise UserError(
                f"{root}: {len(unseen)} classes of {name} have no image in train "
                f"({', '.join(map(printable, unseen[:NAMED]))}{', ...' * (len(unseen) > NAMED)}): "
                "remove their rows or their labels, or give train such images"
            )
    return tuple(sorted(labels["train"]))


def _check_groups(root: Path, members: dict[str, list[Row]]) -> None:
    """Refuses groups of which two splits have images."""
    split_of: dict[str, str] = {}
    both: dict[str, str] = {}
    for name, of in members.items():
        for group in {row.group for row in of} - {""}:
            if split_of.setdefault(group, name) != name:
                both[group] = f"{printable(group)} in {split_of[group]} and {name}"
    if both:
        shown = ", ".join(both[group] for group in sorted(both)[:NAMED])
        raise UserError(
            f"{root}: {len(both)} groups are in two splits ({shown}"
            f"{', ...' * (len(both) > NAMED)}): give all images of a group the same split"
        )
