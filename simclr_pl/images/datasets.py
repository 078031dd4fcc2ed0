"""The table of data sets: name -> splits, classes, and where the files are.

Splits: `train` is what pretraining sees, with the labels a probe may learn from; `val` is held out
from train's *labels* (10 %, class-balanced, the same for everybody with the same `split_seed`)
unless the data set brings one; `test` is for the end. Files are held out by their names, so that
those which come or go move at most one other of their class; a run keeps what it has held out.
"""

import difflib
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import MAX_PIXELS, Labels, OnBadImage, Splits, check_splits
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import name_of
from simclr_pl.core.paths import printable
from simclr_pl.images.heldout import HeldOut, hold_out
from simclr_pl.images.readers.digits import read_digits
from simclr_pl.images.readers.download import fetch_once
from simclr_pl.images.readers.fashion_mnist import (
    FASHION_FILES,
    fashion_is_there,
    fetch_fashion,
    read_fashion,
)
from simclr_pl.images.readers.folder import read_folder
from simclr_pl.images.readers.npz import read_npz
from simclr_pl.images.readers.own import is_own, read_own
from simclr_pl.images.readers.packed import read_packed
from simclr_pl.images.readers.reader import Entry, Raw, first_line, say_once
from simclr_pl.images.readers.torchvision_sets import torchvision_set
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import WorkerImages
from simclr_pl.images.workers.unreadable import Unreadable


def prepare(given: Any, root: str | Path) -> None:
    """Downloads a data set if it is one that downloads and its files are not there.

    Of several processes that ask for it, on any number of machines that see the folder, one
    downloads and the others wait (`fetch_once`).

    Raises:
        UserError: an unknown name, or no internet: the sentence says which files to put where.
    """
    if is_own(given):
        return
    name, root = str(given), Path(root)
    entry = _entry(name)
    if entry.fetch is None:
        return
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        fetch_once(name, root, entry.there, entry.fetch)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        raise UserError(
            f"{name} is not in {root} and could not be downloaded ({first_line(error)}): "
            f"put {entry.files.format(root=root)}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def load(
    given: Any,
    root: str | Path,
    split_seed: int = 0,
    kept: HeldOut | None = None,
    *,
    labels: Labels = "given",
    on_bad_image: OnBadImage = "error",
    max_pixels: int = MAX_PIXELS,
    left_out: Path | None = None,
) -> Splits:
    """Reads a data set whose files are there (see `prepare`).

    Args:
        given: a key of `DATASETS`, or a data set of the user's own (`read_own`).
        root: folder of the data; for `folder` the images' own, for `packed` the
            directory that `pack` has written, for `npz` the file.
        split_seed: of the validation holdout, where the data set brings none.
        kept: the validation images of a run that these data are for, where it has begun.
        labels: those that the data set gives, or none.
        on_bad_image: whether an image file that cannot be read is an error, or is stepped over.
        max_pixels: of an image file.
        left_out: where files that are stepped over are written down, if anywhere.

    Raises:
        UserError: an unknown name; files that are missing, empty or broken; labels out of range;
            a validation split that is not the run's.
    """
    name, raw = name_of(given), _read(given, Path(root), labels)
    classes = tuple(printable(each) for each in raw.classes)
    check_splits(raw, name)
    sources = [source for source in (raw.train, raw.val, raw.test) if source is not None]
    unreadable = Unreadable(Path(root), sum(map(len, sources)), left_out)
    for source in sources:
        if isinstance(source, WorkerImages):
            source.reading, source.unreadable = Reading(on_bad_image, max_pixels), unreadable
    if kept is not None:
        kept.check(own=raw.val is not None)
    _say_unseen(name, raw._replace(classes=classes))
    if raw.val is not None:
        return Splits(raw.train, raw.val, raw.test, classes)
    held = hold_out(raw.train, split_seed) if kept is None else kept.among(raw.train, split_seed)
    shown = raw.train.labels.clone()
    shown[held] = UNLABELLED
    train, val = raw.train.relabel(shown), raw.train.select(held)
    return Splits(train, val, raw.test, classes, held)


def _read(given: Any, root: Path, labels: Labels) -> Raw:
    if is_own(given):
        raw = read_own(given, root)
    elif given == "folder" and labels == "none":
        # What is no class need not be one of train's either.
        raw = read_folder(root, labelled=False)
    else:
        raw = _entry(given).read(root)
    if labels == "given":
        return raw
    train, test, val = (
        source and source.relabel(torch.full_like(source.labels, UNLABELLED))
        for source in (raw.train, raw.test, raw.val)
    )
    assert train is not None
    return Raw(train, test, (), val)


def _entry(name: str) -> Entry:
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown data set '{name}': there are {', '.join(DATASETS)}{hint}")
    return DATASETS[name]


def _say_unseen(name: str, raw: Raw) -> None:
    """Says which classes of val and test nothing can be learnt of, where train has classes."""
    seen = set(raw.train.labels.unique().tolist()) - {UNLABELLED}
    for split, source in (("val", raw.val), ("test", raw.test)):
        if seen and source is not None:
            unseen = sorted(set(source.labels.unique().tolist()) - {UNLABELLED} - seen)
            named = ", ".join(raw.classes[label] for label in unseen[:5])
            if unseen:
                say_once(
                    f"{name}: {len(unseen)} classes of {split} have no image in train, and count "
                    f"as wrong: {named}{', ...' if len(unseen) > 5 else ''}"
                )


_TRAIN_TEST: list[dict[str, Any]] = [{"train": True}, {"train": False}]

DATASETS: dict[str, Entry] = {
    "digits": Entry(read_digits),
    "fashion_mnist": Entry(read_fashion, fetch_fashion, fashion_is_there, FASHION_FILES),
    "cifar10": torchvision_set("CIFAR10", _TRAIN_TEST, "cifar-10-python.tar.gz"),
    "cifar100": torchvision_set("CIFAR100", _TRAIN_TEST, "cifar-100-python.tar.gz"),
    "stl10": torchvision_set(
        "STL10",
        [{"split": split} for split in ("train", "test", "unlabeled")],
        "stl10_binary.tar.gz",
    ),
    "folder": Entry(read_folder),
    "packed": Entry(read_packed),
    "npz": Entry(read_npz),
}
