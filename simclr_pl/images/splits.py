"""Parts of a split: the validation holdout of a set without one, and draws of few labels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.randomness import epoch_order
from simclr_pl.images.groups import Groups
from simclr_pl.images.hashes import by_hash

HOLDOUT = 0.1
"""Share of each class of train whose labels are kept for validation."""

FRACTION = "label_fraction/"
"""Purpose of the groups' order by which labels are drawn: it is not that of the holdout."""

CHOOSING = "choosing/"
"""Purpose of the groups' order by which hyper-parameters are chosen, likewise."""


def holdout(
    labels: Tensor,
    seed: int,
    names: Sequence[bytes] | None = None,
    groups: Groups | None = None,
    what: str = "",
) -> Tensor:
    """Indices of the validation holdout: `HOLDOUT` of each class, at least one, in rising order.

    Unlabelled images are held out only where no image has a label: then `HOLDOUT` of all images.
    Of images with names, those with the smallest hashes are held out, so that an image which comes
    or goes moves at most one other image of its class.

    Of images in groups, whole groups are held out, by the hashes of the groups' names, until
    `HOLDOUT` of all (labelled) images is reached: classes are not balanced.

    Args:
        labels: `int64 [N]`.
        seed: of the choice.
        names: names of the N images, no two alike; `None` for images without names.
        groups: of the N images; `None` without groups.
        what: the data set, which begins errors.

    Raises:
        UserError: groups so large that more than half of the images would be held out.
    """
    if groups is not None:
        return _hold_out_groups(labels, seed, groups, what)
    # Epoch -1 is none of training, in which the first batches would be the holdout.
    order = epoch_order(seed, -1, len(labels)) if names is None else by_hash(names, seed)
    known = bool((labels != UNLABELLED).any())
    members = _of_each_class(labels, order, with_unlabelled=not known)
    return _together([of[: max(1, round(len(of) * HOLDOUT))] for of in members.values()])


def draw_fraction(
    labels: Tensor, fraction: float, seed: int, groups: Groups | None = None
) -> Tensor:
    """Indices of a share of each class's labelled images, the same for everybody with that seed.

    A smaller fraction is part of a larger one with the same seed. Each class's share is rounded to
    whole images, as in the paper's class-balanced 1 % and 10 % of ImageNet (appendix B.5).

    Of images in groups, whole groups are drawn, by the hashes of the groups' names, until that
    share of all labelled images is reached: classes are not balanced.

    Args:
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        fraction: above 0, at most 1.
        seed: of the draw.
        groups: of the N images; `None` without groups.

    Raises:
        UserError: no labels, fewer than 2 classes, a fraction out of its range, or one that leaves
            a class empty.
    """
    check(0 < fraction <= 1, "label_fraction", fraction, "above 0 and at most 1")
    # Unlabelled images change no draw. Epoch -2: neither an order of training nor the holdout's.
    known = (labels != UNLABELLED).nonzero()[:, 0]
    members = _of_each_class(labels, known[epoch_order(seed, -2, len(known))])
    if len(members) < 2:
        found = "labels of 1 class alone" if members else "no labels"
        raise UserError(
            f"the train split has {found}, and a classifier needs at least 2 classes: "
            "put the images into one folder a class, or give a manifest's rows labels"
        )
    if groups is not None and fraction < 1:
        return _draw_groups(labels, fraction, seed, groups)
    counts = {label: round(len(of) * fraction) for label, of in members.items()}
    scarce = min(members, key=lambda label: len(members[label]))
    if not counts[scarce]:
        size = len(members[scarce])
        raise UserError(
            f"label_fraction {fraction:g} leaves class {scarce} empty, which has {size} labelled "
            f"images: give at least {math.floor(50 / size + 1) / 100:g}"
        )
    return _together([of[: counts[label]] for label, of in members.items()])


def drawn_groups(fraction: float, labels: Tensor, drawn: Tensor, groups: Groups) -> str:
    """A line that says what a fraction of labelled images in groups is.

    Args:
        fraction: as it was given.
        labels: `int64 [N]`.
        drawn: indices, from `draw_fraction`.
        groups: of the N images.
    """
    images = int((labels != UNLABELLED).sum())
    return (
        f"label_fraction {fraction:g} draws whole groups ({groups.amount(drawn)}: {len(drawn)} of "
        f"{images} labelled images, {len(drawn) / images:.1%}), not balanced by class"
    )


def few_labels(labels: Tensor, per_class: int, seed: int, groups: Groups | None = None) -> Tensor:
    """Indices of `per_class` images of each class, the same for everybody with that seed.

    Of images in groups, a class takes one group's images after the other's, by the hashes of the
    groups' names: few labels are labels of few groups.

    Args:
        labels: `int64 [N]`, all of them known.
        per_class: images of each class.
        seed: of the draw.
        groups: of the N images; `None` without groups.

    Raises:
        UserError: a class has fewer images.
    """
    order = epoch_order(seed, 0, len(labels))
    if groups is not None:
        order = order[groups.ranks(seed, FRACTION)[order].argsort(stable=True)]
    members = _of_each_class(labels, order)
    for label, of in members.items():
        if len(of) < per_class:
            raise UserError(
                f"class {label} has {len(of)} labelled images, fewer than {per_class}: "
                "ask for fewer labels a class"
            )
    return _together([of[:per_class] for of in members.values()])


def choosing_tenth(labels: Tensor, seed: int, groups: Groups | None = None) -> Tensor:
    """Indices of the labelled images of train that choose hyper-parameters, in rising order.

    `HOLDOUT` of each class, as `holdout` has it. Of images in groups whole groups, by the hashes of
    the groups' names, until `HOLDOUT` is reached: classes are not balanced. A group with which more
    than half of the images would choose is stepped over.

    Args:
        labels: `int64 [N]`, all of them known.
        seed: of the choice.
        groups: of the N images; `None` without groups.

    Raises:
        UserError: images of one group alone.
    """
    if groups is None:
        return holdout(labels, seed)
    images, taken, chosen = len(labels), 0, list[int]()
    ranks = groups.ranks(seed, CHOOSING)
    for rank, size in enumerate(torch.bincount(ranks).tolist()):
        if taken < max(1, round(HOLDOUT * images)) and taken + size <= images / 2:
            taken += size
            chosen.append(rank)
    if not chosen:
        raise UserError(
            f"the labelled images of train are all of one group, {groups.largest(ranks)}, so that "
            "no other group can choose hyper-parameters, and a group is never cut: give finer "
            "groups, or a larger label_fraction"
        )
    return torch.isin(ranks, torch.tensor(chosen)).nonzero()[:, 0]


def no_labels(split: str) -> UserError:
    """The error of an evaluation whose split has no labels."""
    return UserError(
        f"the {split} split has no labels, which this evaluation needs: put its images into one "
        "folder a class (or labels into its manifest), score another split, or judge the run by "
        "its curves (report)"
    )


def _hold_out_groups(labels: Tensor, seed: int, groups: Groups, what: str) -> Tensor:
    known = labels != UNLABELLED
    counted = known if bool(known.any()) else torch.ones_like(known)
    images = int(counted.sum())
    held = groups.first(max(1, round(HOLDOUT * images)), counted, groups.ranks(seed))
    if (taken := int(counted[held].sum())) > images / 2:
        largest = groups.largest(held[counted[held]])
        kind = "labelled images" if bool(known.any()) else "images"
        raise UserError(
            f"{f'{what}: ' if what else ''}the group {largest} is so large that {taken} of train's "
            f"{images} {kind} would be held out for validation, and a group is never cut: give "
            "finer groups, a validation split of your own, or another --data.split_seed"
        )
    return held


def _draw_groups(labels: Tensor, fraction: float, seed: int, groups: Groups) -> Tensor:
    labels = labels.cpu()
    known = labels != UNLABELLED
    images, ranks = int(known.sum()), groups.ranks(seed, FRACTION)
    drawn = groups.first(max(1, round(fraction * images)), known, ranks)
    drawn = drawn[known[drawn]]
    classes = labels[known].unique().tolist()
    if len(labels[drawn].unique()) < len(classes):
        # The class whose first group comes last, and how many images come before that group.
        last = {int(ranks[labels == label].min()): label for label in classes}
        least = 100 * (1 + int((ranks[known] < max(last)).sum())) / images
        raise UserError(
            f"label_fraction {fraction:g} draws whole groups, which leaves class "
            f"{last[max(last)]} empty: give at least {math.ceil(least) / 100:g}"
        )
    return drawn


def _of_each_class(
    labels: Tensor, order: Tensor, *, with_unlabelled: bool = False
) -> dict[int, Tensor]:
    """Indices of each class's images, in that order."""
    shuffled = labels[order]
    classes, counts = shuffled.unique(return_counts=True)
    members = order[shuffled.argsort(stable=True)].split(counts.tolist())
    found = zip(classes.tolist(), members, strict=True)
    return {label: of for label, of in found if with_unlabelled or label != UNLABELLED}


def _together(parts: list[Tensor]) -> Tensor:
    """All indices in rising order."""
    return torch.cat(parts).sort().values
