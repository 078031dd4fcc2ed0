"""Splits of a data set, and the validation split where it brings none."""

from typing import NamedTuple

import torch
from torch import Tensor

from simclr_pl.batch import UNLABELLED
from simclr_pl.data.sources import AnySource
from simclr_pl.randomness import epoch_order

HOLDOUT = 0.1
"""Share of each class of train whose labels are kept for validation."""


class Splits(NamedTuple):
    """A data set's images.

    Attributes:
        train: what pretraining sees; labels of the validation holdout are `UNLABELLED`.
        val: for callbacks and every choice.
        test: for one score at the end, or `None`.
        classes: names in the order of labels; empty where nothing is labelled.
    """

    train: AnySource
    val: AnySource
    test: AnySource | None
    classes: tuple[str, ...]


def holdout(labels: Tensor, seed: int) -> Tensor:
    """Indices of the validation holdout: `HOLDOUT` of each class, at least one, in rising order.

    Where nothing is labelled it is `HOLDOUT` of all images; where some are, of those.

    Args:
        labels: `int64 [N]`.
        seed: of the choice.
    """
    # Epoch -1: the order of no epoch of training, whose first batches would be this holdout.
    order = epoch_order(seed, -1, len(labels))
    shuffled = labels[order]
    classes = shuffled.unique()
    known = classes[classes != UNLABELLED]
    chosen = [
        members[: max(1, round(len(members) * HOLDOUT))]
        for label in (known if len(known) else classes)
        if len(members := order[shuffled == label])
    ]
    return torch.cat(chosen).sort().values
