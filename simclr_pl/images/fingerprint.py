"""The images that a run saw: a hash, and how a data set differs from an earlier look at it."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import Source, Splits
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.decode import BadImageError
from simclr_pl.images.hashes import hashes
from simclr_pl.images.heldout import HeldOut, keys_of
from simclr_pl.images.readers.packed_images import PackedImages
from simclr_pl.images.workers.images import one_by_one
from simclr_pl.writing import printable

SAMPLE = 100
"""Images of a split whose pixels are hashed, evenly spread: a large set is not read twice."""

MANY = 2**16
"""Names that are hashed together."""

MOST_NAMED = 3
"""Names in a sentence."""


def fingerprint(splits: Splits) -> str:
    """Hexadecimal SHA-256 of a data set.

    It covers the class names and how many labels each class has; and of train and test the number
    of images, their names, the sizes of packed images, and the pixels of `SAMPLE` images. All seeds
    of the validation holdout have the same fingerprint.

    Args:
        splits: the data set, from `load`.
    """
    digest = hashlib.sha256(repr(splits.classes).encode())
    digest.update(_labels(splits.train, splits.val))
    for split in (splits.train, splits.test):
        if split is not None:
            _add_images(digest, split)
            digest.update(_labels(splits.test) if split is splits.test else b"")
    return digest.hexdigest()


class Contents(NamedTuple):
    """A summary of a data set that a run keeps, to say later how the data set has changed.

    Attributes:
        fingerprint: of the whole data set.
        channels: C of the images.
        classes: names in the order of labels.
        counts: for each split, how many images each class has, and last how many have no label;
            train's numbers include the images that are held out.
        names: for each split whose images have names, a hash of all names.
        some: for up to `SAMPLE` validation images, the name (or place) and a hash of pixels and
            label, by the hash in `HeldOut`.
    """

    fingerprint: str
    channels: int
    classes: list[str]
    counts: dict[str, list[int]]
    names: dict[str, str]
    some: dict[str, list[str]]

    @classmethod
    def of(cls, splits: Splits, held_out: HeldOut) -> "Contents":
        """Summarises a data set.

        Args:
            splits: the data set, from `load`.
            held_out: its validation images.
        """
        labels = splits.train.labels.clone()
        if splits.held is not None:
            labels[splits.held] = splits.val.labels
        found = {"train": labels, "val": splits.val.labels}
        found |= {} if splits.test is None else {"test": splits.test.labels}
        counts = {
            name: torch.bincount(of % (len(splits.classes) + 1), minlength=len(splits.classes) + 1)
            for name, of in found.items()
        }
        named = {name: getattr(splits, name).names for name in found}
        return cls(
            fingerprint(splits),
            splits.train.channels,
            list(splits.classes),
            {name: of.tolist() for name, of in counts.items()},
            {k: _digest(np.sort(hashes(v, 0)).tobytes()) for k, v in named.items() if v},
            _some_of_val(splits, held_out),
        )


REMEDY = "put it back as it was, or start a new run"


def check_same_kind(before: Contents, now: Contents) -> None:
    """Refuses a data set with other classes or channels than before.

    Args:
        before: the data set when the run was last trained.
        now: the data set today.

    Raises:
        UserError: classes or channels have changed.
    """
    if before.classes != now.classes:
        gone = [name for name in before.classes if name not in now.classes]
        new = [name for name in now.classes if name not in before.classes]
        parts = ((gone, "gone"), (new, "new"))
        which = " and ".join(f"{shortened(names)} {verb}" for names, verb in parts if names)
        raise UserError(
            "the classes have changed since the run was last trained "
            f"({which or 'their order is another'}): {REMEDY}"
        )
    if before.channels != now.channels:
        raise UserError(
            f"images have {now.channels} channels, and had {before.channels} when the run was last "
            f"trained: {REMEDY}"
        )


def changes(before: Contents, now: Contents, *, own: bool) -> list[str]:
    """How a data set has changed, a clause for each difference.

    Args:
        before: the data set when the run was last trained.
        now: the data set today, with the same classes and channels.
        own: whether the data set brings a validation split, which may have grown.

    Raises:
        UserError: validation images, or their labels, have changed.
    """
    known = before.some.keys() & now.some
    other = sorted(now.some[key][0] for key in known if before.some[key] != now.some[key])
    if other or (before.counts["val"] != now.counts["val"] and not own):
        which = f" ({shortened(other)})" if other else ""
        raise UserError(
            f"validation images{which}, or their labels, have changed since the run was last "
            f"trained: {REMEDY}"
        )
    said = []
    for name in dict.fromkeys([*before.counts, *now.counts]):
        was, has = before.counts.get(name, []), now.counts.get(name, [])
        if was != has:
            what = _classes(before, now, name)
            said.append(f"{name} has {sum(has)} images ({sum(was)} before){what}")
        elif before.names.get(name) != now.names.get(name):
            said.append(f"{name} has as many images as before, but other files")
    if not said and before.fingerprint != now.fingerprint:
        said.append("images of train or test are not the same as before")
    return said


def _classes(before: Contents, now: Contents, split: str) -> str:
    """`: cat 99 (100), dog 12 (10)`: classes whose number of images differs, now (before)."""
    names = [*before.classes, "without a label"]
    was, has = before.counts.get(split), now.counts.get(split)
    if was is None or has is None or len(names) < 2:
        return ""
    found = [f"{n} {b} ({a})" for n, a, b in zip(names, was, has, strict=True) if a != b]
    return f": {shortened(found)}"


def shortened(names: Sequence[str]) -> str:
    """`a, b, c, ...`: the first `MOST_NAMED` names."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def _some_of_val(splits: Splits, held_out: HeldOut) -> dict[str, list[str]]:
    keys = keys_of(splits)
    hashed, found = hashes(keys, held_out.seed), {}
    for place in one_by_one(splits.val, np.argsort(hashed)[:SAMPLE].tolist()):
        label = b"%d" % int(splits.val.labels[place])
        name = printable(os.fsdecode(keys[place]))
        found[str(hashed[place])] = [name, _digest(_content(splits.val, place) + label)]
    return found


def _content(source: Source, place: int) -> bytes:
    """An image's bytes; none of a bad image, which is named, or left out, when its turn comes."""
    try:
        return source.content(place)
    except (BadImageError, OSError):
        return b""


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _labels(*sources: Source | None) -> bytes:
    """How many images each class has in these splits together, as bytes to hash."""
    labels = torch.cat([source.labels for source in sources if source is not None])
    return repr(torch.bincount(labels[labels != UNLABELLED]).tolist()).encode()


def _add_images(digest: Any, source: Source) -> None:
    digest.update(f"{len(source)} images of {source.channels} channels".encode())
    if source.names is not None:
        for first in range(0, len(source.names), MANY):  # as all of them joined by new lines
            some = source.names[first : first + MANY]
            digest.update(b"\n" * bool(first) + b"\n".join(some))
    if (groups := getattr(source, "groups", None)) is not None:
        digest.update(b"\n".join(getattr(source, "group_names", ())) + groups.numpy().tobytes())
    if isinstance(source, PackedImages):
        digest.update(source.sizes.numpy().tobytes())
    places = torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long()
    for place in one_by_one(source, places.tolist()):
        digest.update(_content(source, place))
