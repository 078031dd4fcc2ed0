"""Folders of images as a data set: which files are which split, and of which class."""

import os
from pathlib import Path

import torch

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.formats import suffixes
from simclr_pl.images.files.listing import LeftOut, entries_of, images_below, is_a, is_hidden
from simclr_pl.images.files.sample import check_ranges, look_at
from simclr_pl.images.readers.reader import Raw, say_once
from simclr_pl.images.workers.images import ImageFiles

SPLITS = {
    "train": {"train", "training", "trainset", "train_set"},
    "val": {"val", "valid", "validation", "valset", "val_set"},
    "test": {"test", "testing", "testset", "test_set"},
}
"""Names of folders that are splits, and what else people call them, in small letters."""


def read_folder(root: Path, *, labelled: bool = True, left: LeftOut | None = None) -> Raw:
    """Images below `root`: class folders, or unlabelled; or both below train/, val/ and test/.

    A line says how many images there are, and what was left out, and why.

    Args:
        root: the folder.
        labelled: whether folders are classes; else nothing is labelled, at any depth.
        left: is told what was left out, and why.

    Raises:
        UserError: no such folder, no images, folders that look like splits and aren't named so, or
            a class that train doesn't have.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the images' folder as --data.root")
    left = LeftOut() if left is None else left
    _check_names(root)
    if not (root / "train").is_dir():
        train, classes = _read_split(root, None, left, labelled=labelled)
        raw = Raw(train, None, classes)
    else:
        train, classes = _read_split(root / "train", None, left, labelled=labelled)
        val, test = (
            _read_split(root / name, classes, left, labelled=labelled)[0]
            if (root / name).is_dir()
            else None
            for name in ("val", "test")
        )
        raw = Raw(train, test, classes, val)
        _count_beside(root, left)
    _say(root, raw, left, _moving(root, raw))
    return raw


def _moving(root: Path, raw: Raw) -> str:
    """Looks at some files of each split; says how many of them have more than one frame."""
    splits = [split for split in (raw.train, raw.val, raw.test) if isinstance(split, ImageFiles)]
    seen = [look_at(split.paths) for split in splits]
    check_ranges(root, [found for each in seen for found in each.ranges])
    moving = sum(each.moving for each in seen)
    if not moving:
        return ""
    return (
        f"; {moving} of {sum(each.files for each in seen)} files looked at are animations, "
        "of which the first frame is used"
    )


def _read_split(
    root: Path, known: tuple[str, ...] | None, left: LeftOut, *, labelled: bool
) -> tuple[ImageFiles, tuple[str, ...]]:
    files = images_below(root, left)
    if not files:
        raise UserError(
            f"{root} holds no images ({', '.join(sorted(suffixes()))}): give the folder that "
            f"holds them, or one folder a class{f' (left out: {left})' if left.counts else ''}"
        )
    # Files beside the class folders come first, and are unlabelled.
    files.sort(key=lambda file: file.first)
    found = [os.fsdecode(file.first) for file in files]
    classes = tuple(dict.fromkeys(name for name in found if name)) if labelled else ()
    if known is not None and labelled:
        _check_classes(root, classes, known)
        classes = known
    places = {"": UNLABELLED, **{name: place for place, name in enumerate(classes)}}
    labels = [places[name] if labelled else UNLABELLED for name in found]
    paths = [Path(file.path) for file in files]
    return ImageFiles(paths, torch.tensor(labels, dtype=torch.int64), root), classes


def _check_classes(root: Path, found: tuple[str, ...], known: tuple[str, ...]) -> None:
    alike = {name.casefold(): name for name in known}
    for name in found:
        if name in known:
            continue
        if name.casefold() in alike:
            raise UserError(
                f"{root / name} and train/{alike[name.casefold()]} differ in small and capital "
                "letters, which makes them two classes: rename one of them"
            )
        raise UserError(f"{root / name} is a class that train/ doesn't have: remove it")


def _check_names(root: Path) -> None:
    """Refuses folders that look like splits, and would be taken as classes or left out."""
    entries = entries_of(str(root))
    folders = [e.name for e in entries if not is_hidden(e.name) and is_a(e.is_dir)]
    meant = {
        name: split
        for name in sorted(folders)
        for split, names in SPLITS.items()
        if name.casefold() in names
    }
    exact = [name for name in meant if name in SPLITS]
    wrong = {name: split for name, split in meant.items() if split not in exact}
    if "train" not in exact:
        # One such name alone may well be a class, beside others.
        alone = len(folders) == 1 and "train" in wrong.values()
        if len(set(meant.values())) < 2 and not alone:
            return
    if wrong:
        how = " and ".join(f"{name} to {split}" for name, split in wrong.items())
        raise UserError(
            f"{root} has {' and '.join(f'{name}/' for name in meant)}, but splits are called "
            f"train/, val/ and test/: rename {how}"
        )
    if meant and "train" not in exact:
        raise UserError(
            f"{root} has {' and '.join(f'{name}/' for name in meant)}, but no train/: give it one"
        )


def _count_beside(root: Path, left: LeftOut) -> None:
    """Whatever lies beside train/ and is no split."""
    known = suffixes()
    for entry in entries_of(str(root)):
        if is_hidden(entry.name):
            left.add("hidden or of a system", entry.name)
        elif is_a(entry.is_dir):
            if entry.name not in SPLITS:
                left.add("folders beside train/", entry.name)
        elif Path(entry.name).suffix.lower() in known:
            left.add("images beside train/", entry.name)


def _say(root: Path, raw: Raw, left: LeftOut, more: str) -> None:
    splits = {"train": raw.train, "val": raw.val, "test": raw.test}
    counts = {name: len(split) for name, split in splits.items() if split is not None}
    parts = ", ".join(f"{name} {count}" for name, count in counts.items())
    say_once(
        f"{root}: {sum(counts.values())} images"
        + (f" ({parts})" if len(counts) > 1 else "")
        + (f"; left out: {left}" if left.counts else "; nothing is left out")
        + more
    )
