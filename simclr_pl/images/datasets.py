"""The table of data sets, and how a name, or a data set of the user's own, becomes splits.

Pretraining sees `train`, a probe its labels. `val` is held out from train's *labels* (10 %,
class-balanced, the same for everybody with the same `split_seed`) unless the data set brings one.
`test` is for the end. Files are held out by their names, so that a file which comes or goes moves
at most one other file of its class; a run keeps its validation images.
"""

import difflib
import socket
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import (
    MAX_PIXELS,
    Labels,
    OnBadImage,
    Pages,
    Range,
    Splits,
    check_splits,
)
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import name_of
from simclr_pl.images.groups import Groups, hidden_with
from simclr_pl.images.heldout import HeldOut
from simclr_pl.images.readers.digits import read_digits
from simclr_pl.images.readers.download import fetch_once
from simclr_pl.images.readers.fashion_mnist import FASHION_MNIST
from simclr_pl.images.readers.folder import read_folder
from simclr_pl.images.readers.hub import hub_set
from simclr_pl.images.readers.manifest import read_manifest
from simclr_pl.images.readers.own import is_own, read_own
from simclr_pl.images.readers.packed import read_packed
from simclr_pl.images.readers.reader import (
    LIBRARIES,
    SHARDS,
    Entry,
    Raw,
    first_line,
    in_library,
    say_once,
)
from simclr_pl.images.readers.shards import shard_set
from simclr_pl.images.readers.stored import KINDS, read_stored
from simclr_pl.images.readers.torchvision_classes import classification_set
from simclr_pl.images.readers.torchvision_sets import torchvision_set
from simclr_pl.images.scale import in_range
from simclr_pl.images.splits import holdout
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import WorkerImages
from simclr_pl.images.workers.unreadable import Unreadable
from simclr_pl.writing import printable


def prepare(given: Any, root: str | Path) -> None:
    """Downloads a data set whose files are not there, if the data set can be downloaded.

    One process downloads, and all others that see the folder wait, on any machine (`fetch_once`).

    Raises:
        UserError: an unknown name, or no internet: the sentence says which files to put where.
    """
    if is_own(given):
        return
    name, entry = name_of(given), _entry(given, "given", Reading())
    if entry.prepare is not None:
        entry.prepare(_place(given, root))
    root = Path(root)
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
    range: Range | Literal["auto"] | None = None,  # noqa: A002 - the option's name
    pages: Pages | None = None,
    left_out: Path | None = None,
) -> Splits:
    """Reads a data set whose files are there (see `prepare`).

    Args:
        given: a key of `DATASETS`, a library's data set (`in_library`), or a data set of the
            user's own (`read_own`).
        root: folder of the data; for `folder` the images' folder, for `packed` the folder that
            `pack` has written, for `manifest` and `npz` the file.
        split_seed: of the validation holdout, where the data set brings none.
        kept: the validation images of the run that reads the data, where the run has begun.
        labels: whether the data set's labels are used, or none.
        on_bad_image: whether an image that cannot be read is an error, or is stepped over.
        max_pixels: larger images count as images that cannot be read.
        range: the numbers that are 0 and 1, or auto: found in a sample; `None` for 8-bit images.
        pages: what the pages of a file are, where it has several.
        left_out: the run's file that names images which are stepped over; `None` without a run.

    Raises:
        UserError: an unknown name; files that are missing, empty or broken; labels out of range;
            a validation split that is not the run's.
    """
    name, reading = name_of(given), Reading(on_bad_image, max_pixels, range is not None, pages)
    raw = read_raw(given, root, labels, reading)
    for source in raw.splits.values():
        if isinstance(source, WorkerImages):
            source.reading = reading
    sources = in_range(raw.splits, range, pages, name)
    raw = raw._replace(**sources, classes=tuple(map(printable, raw.classes)))
    what = str(root) if name in _AT_ROOT else name
    check_splits(raw, what)
    _count_bad(name, root, raw, left_out, reading)
    if kept is not None:
        kept.check(own=raw.val is not None)
    _say_unseen(name, raw)
    if raw.val is not None:
        return Splits(raw.train, raw.val, raw.test, raw.classes)
    groups = Groups.of(raw.train)
    if kept is None:
        held = holdout(raw.train.labels, split_seed, raw.train.names, groups, what)
    else:
        held = kept.among(raw.train, split_seed)
    shown, hidden = raw.train.labels.clone(), hidden_with(held, groups)
    shown[hidden] = UNLABELLED
    if groups is not None:
        _say_groups(name, groups, held, len(hidden) - len(held))
    train, val = raw.train.relabel(shown), raw.train.select(held)
    return Splits(train, val, raw.test, raw.classes, held)


def read_raw(given: Any, root: str | Path, labels: Labels, reading: Reading) -> Raw:
    """Reads a data set's splits as they are: nothing is held out, and numbers have no range.

    Args:
        given: see `load`.
        root: likewise.
        labels: likewise.
        reading: how images are read.
    """
    place = _place(given, root)
    if is_own(given):
        raw = read_own(given, place, reading)
    elif given in ("folder", "manifest"):
        # Classes of val and test that train lacks are no error where nothing is labelled.
        how: dict[str, Any] = {"labelled": labels == "given", "numbers": reading.numbers}
        if given == "folder":
            raw = read_folder(place, **how)
        else:
            raw = read_manifest(place, **how, skip=reading.on_bad_image == "skip")
    else:
        raw = _entry(given, labels, reading).read(place)
    if labels == "given":
        return raw
    none = {
        name: source.relabel(torch.full_like(source.labels, UNLABELLED))
        for name, source in raw.splits.items()
    }
    return Raw(**none, classes=())


def _place(given: Any, root: str | Path) -> Any:
    """The root as a path; of shards as it was given, since it may be an address or a pattern."""
    return str(root) if name_of(given) == SHARDS else Path(root)


def _entry(given: Any, labels: Labels, reading: Reading) -> Entry:
    named = in_library(given)
    if named is not None:
        entry_of = {"hub": hub_set, "torchvision": classification_set}[named.library]
        return entry_of(named, labels, reading)
    if name_of(given) == SHARDS:
        return shard_set(given, labels, reading)
    name = str(given)
    if name in KINDS:
        return Entry(partial(read_stored, kind=name, reading=reading))
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join([*DATASETS, *(f"{library}:NAME" for library in LIBRARIES)])
        raise UserError(f"unknown data set '{name}': there are {known}{hint}")
    return DATASETS[name]


def _count_bad(
    name: str, root: str | Path, raw: Raw, left_out: Path | None, reading: Reading
) -> None:
    """Gives all splits one count of their bad images."""
    where = name if name == SHARDS or name not in DATASETS else Path(root)
    unreadable = Unreadable(where, sum(map(len, raw.splits.values())), left_out)
    if name in _AT_ROOT and (reading.numbers or name in KINDS):  # `pack` reads 8 bits alone
        pages = "" if reading.pages is None else f" --data.pages {reading.pages}"
        data = f"--data.dataset {name} --data.root {root} --data.range auto{pages}"
        unreadable.lists = f"python -m simclr_pl stats {data} --images all"
    for source in raw.splits.values():
        if isinstance(source, WorkerImages):
            source.unreadable = unreadable
        if name == "manifest":
            unreadable.listed.append(getattr(source, "paths", []))


def _say_unseen(name: str, raw: Raw) -> None:
    """Prints which classes of val and test train lacks, where train has classes."""
    seen = set(raw.train.labels.unique().tolist()) - {UNLABELLED}
    for split, source in raw.splits.items() if seen else ():
        unseen = sorted(set(source.labels.unique().tolist()) - {UNLABELLED} - seen)
        if unseen:
            named = ", ".join(raw.classes[label] for label in unseen[:5])
            say_once(
                f"{name}: {len(unseen)} classes of {split} have no image in train, and count "
                f"as wrong: {named}{', ...' if len(unseen) > 5 else ''}"
            )


def _say_groups(name: str, groups: Groups, held: Tensor, more: int) -> None:
    """Prints that whole groups are held out, and how many images came to them after a run began."""
    images = len(groups.ids)
    say_once(
        f"{name}: validation has whole groups ({groups.amount(held)}: {len(held)} of {images} "
        f"images, {len(held) / images:.1%}), so that its classes are not balanced"
        + (f"; {more} more images of these groups are trained on without their labels" * bool(more))
    )


_TRAIN_TEST: list[dict[str, Any]] = [{"train": True}, {"train": False}]

DATASETS: dict[str, Entry] = {
    "digits": Entry(read_digits),
    "fashion_mnist": FASHION_MNIST,
    "cifar10": torchvision_set("CIFAR10", _TRAIN_TEST, "cifar-10-python.tar.gz"),
    "cifar100": torchvision_set("CIFAR100", _TRAIN_TEST, "cifar-100-python.tar.gz"),
    "stl10": torchvision_set(
        "STL10",
        [{"split": split} for split in ("train", "test", "unlabeled")],
        "stl10_binary.tar.gz",
    ),
    "folder": Entry(read_folder),
    "manifest": Entry(read_manifest),
    "packed": Entry(read_packed),
    SHARDS: shard_set(SHARDS, "given", Reading()),
    **{kind: Entry(partial(read_stored, kind=kind)) for kind in KINDS},
}

_AT_ROOT = ("folder", "manifest", "packed", *KINDS)
"""Data sets that are known by their root, in errors."""
