"""Groups of images that stay together: a patient's, a slide's, a place's, a video's.

Whole groups are held out for validation, and whole groups are drawn for a share of the labels. An
image without a group is a group of its own, which is known by the image's name.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNGROUPED
from simclr_pl.images.hashes import hashes
from simclr_pl.writing import printable


class Groups(NamedTuple):
    """The groups of N images.

    Attributes:
        ids: `int64 [N]`: images with the same number belong together.
        keys: what each group is known by, in the order of the numbers: its name, or the name of
            the one image that it has.
        named: how many groups have a name of their own; they come first.
    """

    ids: Tensor
    keys: Sequence[bytes]
    named: int

    @classmethod
    def of(cls, source: Any) -> "Groups | None":
        """The groups of a source's images; `None` where it has none.

        Args:
            source: a `Source`, perhaps with the attributes `groups` and `group_names`.
        """
        if getattr(source, "groups", None) is None:
            return None
        ids, named = source.groups.clone(), list(source.group_names)
        (alone,) = (ids == UNGROUPED).nonzero(as_tuple=True)
        ids[alone] = len(named) + torch.arange(len(alone))
        # By names, as everywhere; an image without one is known by its place.
        names = source.names
        keys = [b"%d" % place if names is None else names[place] for place in alone.tolist()]
        return cls(ids, named + keys, len(named))

    def at(self, index: Tensor) -> "Groups":
        """The groups of the images at `index` alone."""
        return self._replace(ids=self.ids[index])

    def ranks(self, seed: int, purpose: str = "") -> Tensor:
        """`int64 [N]`, the place of each image's group among those there are, by rising hash.

        A group that comes or goes changes the order of no other two.

        Args:
            seed: of the hashes.
            purpose: orders for several purposes have nothing to do with each other.
        """
        present, of_image = self.ids.unique(return_inverse=True)
        keys = [self.keys[number] for number in present.tolist()]
        hashed = hashes((purpose.encode() + key for key in keys), seed).tolist()
        # Between equal hashes the key decides, then whether it is a name; no two groups are alike.
        order = sorted(range(len(keys)), key=lambda k: (hashed[k], keys[k], k))
        ranks = torch.empty(len(keys), dtype=torch.int64)
        ranks[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(keys))
        return ranks[of_image]

    def first(self, wanted: float, counted: Tensor, ranks: Tensor) -> Tensor:
        """Indices of the images of the first groups that together reach a number, in rising order.

        Args:
            wanted: the number of counted images.
            counted: `bool [N]`: the others count nothing, and come with their group.
            ranks: of the groups, from `ranks`.
        """
        sizes = torch.bincount(ranks[counted], minlength=int(ranks.max()) + 1)
        before = sizes.cumsum(0) - sizes
        return ((sizes > 0) & (before < wanted))[ranks].nonzero()[:, 0]

    def largest(self, index: Tensor) -> str:
        """`patient 7 (312 images)`: the largest group of the images at `index`, for a sentence."""
        number, count = torch.unique(self.ids[index], return_counts=True)
        most = int(count.argmax())
        key = self.keys[int(number[most])].decode(errors="surrogateescape")
        return f"{printable(key)} ({int(count[most])} images)"

    def amount(self, index: Tensor) -> str:
        """`3 groups and 2 images without a group`: how much lies at `index`, for a sentence."""
        present = self.ids[index].unique()
        named = int((present < self.named).sum())
        alone = len(present) - named
        return f"{named} groups{f' and {alone} images without a group' if alone else ''}"


def hidden_with(held: Tensor, groups: Groups | None) -> Tensor:
    """Indices of train whose labels are hidden: what is held out, and the rest of its groups.

    A group has such a rest where images came to it after a run began: the run keeps its validation
    images, and learns no label of their groups.

    Args:
        held: `int64 [n]`, places in train of the validation images.
        groups: of train's images; `None` without groups.
    """
    if groups is None:
        return held
    return torch.isin(groups.ids, groups.ids[held]).nonzero()[:, 0]


def number_groups(names: Sequence[Sequence[str]]) -> tuple[list[Tensor], list[bytes]]:
    """Numbers of the groups of several splits: `int64 [N]` of each, and the names in their order.

    Args:
        names: of each image's group, split by split; empty for none.
    """
    known = sorted({name for split in names for name in split} - {""})
    place = {name: number for number, name in enumerate(known)} | {"": UNGROUPED}
    numbers = [np.array([place[name] for name in split], np.int64) for split in names]
    return [torch.from_numpy(of) for of in numbers], [os.fsencode(name) for name in known]
