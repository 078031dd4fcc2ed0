"""A folder of images as a data set: folders are splits and classes."""

from pathlib import Path

import torch

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.listing import LeftOut, entries_of, images_below, is_a, is_hidden
from simclr_pl.images.files.sample import look_at
from simclr_pl.images.names import Paths
from simclr_pl.images.readers.reader import Raw, say_once
from simclr_pl.images.workers.images import ImageFiles

CALLED = {
    "train": {"train", "training", "trainset", "train_set"},
    "val": {"val", "valid", "validation", "valset", "val_set"},
    "test": {"test", "testing", "testset", "test_set"},
}
"""Each split's folder, and other names that people give it, in small letters."""


def read_folder(
    root: Path, *, labelled: bool = True, numbers: bool = False, left: LeftOut | None = None
) -> Raw:
    """Reads images below `root`: class folders, or unlabelled; also below train/, val/ and test/.

    A line says how many images there are, how many files were left out, and why.

    Args:
        root: the folder.
        labelled: whether folders are classes; else nothing is labelled, at any depth.
        numbers: whether files of numbers (NumPy, HDF5, DICOM) are images, too.
        left: counts the files that are left out, with the reason.

    Raises:
        UserError: no such folder, no images, folders that look like splits and aren't named so, or
            a class that train doesn't have.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the images' folder as --data.root")
    left = LeftOut(numbers=numbers) if left is None else left
    _check_names(root)
    has_splits = (root / "train").is_dir()
    train, classes = _read_split(root / "train" if has_splits else root, None, left, labelled)
    splits = {"train": train}
    if has_splits:
        for name in ("val", "test"):
            if (root / name).is_dir():
                splits[name], _ = _read_split(root / name, classes, left, labelled)
        _count_beside(root, left)
    # Numbers are read as they are: nothing of them is reduced.
    moving = "" if numbers else look_at(root, [split.paths for split in splits.values()])
    counts = {name: len(split) for name, split in splits.items()}
    parts = ", ".join(f"{name} {count}" for name, count in counts.items())
    say_once(
        f"{root}: {sum(counts.values())} images{f' ({parts})' if len(counts) > 1 else ''}; "
        f"{f'left out: {left}' if left.counts else 'nothing is left out'}{moving}"
    )
    return Raw(**splits, classes=classes)


def _read_split(
    root: Path, known: tuple[str, ...] | None, left: LeftOut, labelled: bool
) -> tuple[ImageFiles, tuple[str, ...]]:
    found = images_below(root, left)
    if not found.names:
        remedy = "give the folder that holds them, or one folder a class"
        if known is not None:
            remedy = "put images there, or remove the folder"
        raise UserError(
            f"{root} holds no images ({', '.join(sorted(left.known))}): {remedy}"
            f"{f' (left out: {left})' if left.counts else ''}"
        )
    # Files beside the class folders have no folder, and are unlabelled.
    classes = tuple(filter(None, found.folders)) if labelled else ()
    if known is not None and labelled:
        _check_classes(root, classes, known)
        classes = known
    places = {name: place for place, name in enumerate(classes)}
    of_folders = torch.tensor([places.get(name, UNLABELLED) for name in found.folders])
    labels = of_folders.repeat_interleave(torch.tensor([*found.folders.values()]))
    return ImageFiles(Paths(root, found.names), labels, found.names), classes


def _check_classes(root: Path, found: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuses classes that train does not have."""
    alike = {name.casefold(): name for name in known}
    for name in (name for name in found if name not in known):
        if name.casefold() in alike:
            raise UserError(
                f"{root / name} and train/{alike[name.casefold()]} differ in small and capital "
                "letters, which makes them two classes: rename one of them"
            )
        raise UserError(f"{root / name} is a class that train/ doesn't have: remove it")


def _check_names(root: Path) -> None:
    """Refuses folders that look like splits, and would be taken as classes or left out."""
    entries = entries_of(str(root))
    folders = sorted(e.name for e in entries if not is_hidden(e.name) and is_a(e.is_dir))
    meant = {
        name: split
        for name in folders
        for split, names in CALLED.items()
        if name.casefold() in names
    }
    # One such name alone may well be a class, beside others.
    alone = len(folders) == 1 and bool(meant)
    if "train" not in meant and len(set(meant.values())) < 2 and not alone:
        return
    found = f"{root} has {' and '.join(f'{name}/' for name in meant)}, but"
    wrong = [f"{name} to {split}" for name, split in meant.items() if split not in meant]
    if wrong:
        raise UserError(
            f"{found} splits are called train/, val/ and test/: rename {' and '.join(wrong)}"
        )
    if "train" not in meant:
        raise UserError(
            f"{found} no train/: give it one, or give the folder to train on as --data.root"
        )


def _count_beside(root: Path, left: LeftOut) -> None:
    """Counts files and folders beside train/ that are no splits."""
    for entry in entries_of(str(root)):
        if is_hidden(entry.name):
            left.add("hidden or of a system", entry.name)
        elif is_a(entry.is_dir):
            if entry.name not in CALLED:
                left.add("folders beside train/", entry.name)
        elif Path(entry.name).suffix.lower() in left.known:
            left.add("images beside train/", entry.name)
