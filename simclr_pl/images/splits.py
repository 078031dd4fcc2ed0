"""Parts of a split: the validation holdout where a set brings none, and draws of few labels."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.core.randomness import epoch_order

HOLDOUT = 0.1
"""Share of each class of train whose labels are kept for validation."""


def holdout(labels: Tensor, seed: int) -> Tensor:
    """Indices of the validation holdout: `HOLDOUT` of each class, at least one, in rising order.

    Where nothing is labelled it is `HOLDOUT` of all images; where some are, of those.

    Args:
        labels: `int64 [N]`.
        seed: of the choice.
    """
    # Epoch -1: the order of no epoch of training, whose first batches would be this holdout.
    return _first_of_each_class(labels, epoch_order(seed, -1, len(labels)))


def holdout_by_name(labels: Tensor, names: Sequence[bytes], seed: int) -> Tensor:
    """Indices of the validation holdout, as `holdout`, where images have names.

    Of each class those with the smallest hashes are held out: an image that comes or goes moves at
    most one other of its class.

    Args:
        labels: `int64 [N]`.
        names: of the N images, no two alike.
        seed: of the choice.
    """
    # Of equal hashes, of which there is one pair in 2^64, the name decides: places say nothing.
    ranked = sorted(zip(hashes(names, seed).tolist(), names, range(len(names)), strict=True))
    order = torch.tensor([place for _, _, place in ranked], dtype=torch.int64)
    return _first_of_each_class(labels, order)


def hashes(keys: Iterable[bytes], seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash of each key with a seed: `uint64 [N]`, the same on every machine (BLAKE2b).

    Args:
        keys: what images are known by.
        seed: of the choice that hangs on the hashes.
    """
    start = hashlib.blake2b(f"{seed}/".encode(), digest_size=8)
    digests = []
    for key in keys:
        each = start.copy()
        each.update(key)
        digests.append(each.digest())
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def draw_fraction(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of a share of each class's labelled images: what few labels mean, the same for all.

    A smaller fraction is part of a larger one of the same seed. Rounded to whole images, class by
    class, as the paper's class-balanced 1 % and 10 % of ImageNet are (appendix B.5).

    Args:
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        fraction: above 0, at most 1.
        seed: of the draw.

    Raises:
        UserError: no labels, fewer than 2 classes, a fraction out of its range, or one that leaves
            a class empty.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"label_fraction is {fraction:g}, but must be above 0 and at most 1")
    # Whatever is unlabelled has no part in the draw, as if it weren't there. Epoch -2: neither
    # training's orders nor the holdout's.
    known = (labels != UNLABELLED).nonzero()[:, 0]
    members = _of_each_class(labels, known[epoch_order(seed, -2, len(known))])
    if len(members) < 2:
        found = "labels of 1 class alone" if members else "no labels"
        raise UserError(
            f"the train split has {found}, and a classifier needs at least 2 classes: "
            "put the images into one folder a class"
        )
    counts = {label: round(len(of) * fraction) for label, of in members.items()}
    scarce = min(members, key=lambda label: len(members[label]))
    if not counts[scarce]:
        size = len(members[scarce])
        raise UserError(
            f"label_fraction {fraction:g} leaves class {scarce} empty, which has {size} labelled "
            f"images: give at least {math.floor(50 / size + 1) / 100:g}"
        )
    return _together([of[: counts[label]] for label, of in members.items()])


def few_labels(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of so many labelled images of each class: the same for everybody with that seed.

    Args:
        labels: `int64 [N]`, all of them known.
        per_class: images of each class.
        seed: of the draw.

    Raises:
        UserError: a class with fewer images than that.
    """
    members = _of_each_class(labels, epoch_order(seed, 0, len(labels)))
    for label, of in members.items():
        if len(of) < per_class:
            raise UserError(
                f"class {label} has {len(of)} labelled images, fewer than {per_class}: "
                "ask for fewer labels a class"
            )
    return _together([of[:per_class] for of in members.values()])


def no_labels(split: str) -> UserError:
    """What is said of a split without a single label that was given to an evaluation."""
    return UserError(
        f"the {split} split has no labels, which this evaluation needs: put its images into one "
        "folder a class, score another split, or judge the run by its curves (report)"
    )


def _first_of_each_class(labels: Tensor, order: Tensor) -> Tensor:
    """The holdout: the first places in that order of each class, or of all where none is known."""
    known = bool((labels != UNLABELLED).any())
    members = _of_each_class(labels, order, with_unlabelled=not known)
    return _together([of[: max(1, round(len(of) * HOLDOUT))] for of in members.values()])


def _of_each_class(
    labels: Tensor, order: Tensor, *, with_unlabelled: bool = False
) -> dict[int, Tensor]:
    """Places of each class's images, in that order."""
    shuffled = labels[order]
    classes, counts = shuffled.unique(return_counts=True)
    members = order[shuffled.argsort(stable=True)].split(counts.tolist())
    found = zip(classes.tolist(), members, strict=True)
    return {label: of for label, of in found if with_unlabelled or label != UNLABELLED}


def _together(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).sort().values
