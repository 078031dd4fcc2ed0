"""Groups of images that stay together: a patient's, a slide's, a place's, a video's.

Whole groups are held out for validation, and whole groups are drawn for a share of the labels. An
image without a group is a group of its own, which is known by the image's name.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNGROUPED
from simclr_pl.core.errors import UserError
from simclr_pl.images.hashes import by_hash
from simclr_pl.writing import printable

NAMED = 3
"""Groups that a sentence names."""


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
        # (Of a name and an image's that are alike, the name comes first.)
        ranks = torch.empty(len(keys), dtype=torch.int64)
        ranks[by_hash(keys, seed, purpose)] = torch.arange(len(keys))
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


def group_images(what: str, splits: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> int:
    """Gives the images of several splits their groups.

    Args:
        what: the data set, for errors.
        splits: sources by the splits' names.
        names: of each image's group, split by split; empty for none.

    Returns:
        How many groups have a name.

    Raises:
        UserError: a group in two splits.
    """
    split_of: dict[str, str] = {}
    both: dict[str, str] = {}
    for split, of in names.items():
        for group in set(of) - {""}:
            if split_of.setdefault(group, split) != split:
                both[group] = f"{printable(group)} in {split_of[group]} and {split}"
    if both:
        shown = ", ".join(both[group] for group in sorted(both)[:NAMED])
        raise UserError(
            f"{what}: {len(both)} groups are in two splits ({shown}"
            f"{', ...' * (len(both) > NAMED)}): give all images of a group the same split"
        )
    numbers, known = number_groups(list(names.values()))
    for split, ids in zip(names, numbers, strict=True):
        splits[split].groups, splits[split].group_names = ids, known
    return len(known)


def names_in_array(given: Any, count: int, what: str) -> list[str]:
    """Names of the groups of so many images that an array gives as texts or whole numbers.

    Args:
        given: `[N]` or `[N, 1]`; empty, or `UNGROUPED`, for none. `None`: no image has a group.
        count: N.
        what: the array, for errors.

    Raises:
        UserError: another kind or shape.
    """
    array = np.asarray([""] * count if given is None else given)
    if array.shape in ((count,), (count, 1)) and array.dtype.kind in "iuOSUT":
        names = [os.fsdecode(g) if isinstance(g, bytes) else g for g in array.ravel().tolist()]
        if all(isinstance(name, str | int) for name in names):
            return ["" if name == UNGROUPED else str(name) for name in names]
    raise UserError(
        f"{what} is {array.dtype} {[*array.shape]}, but must be texts or whole numbers [{count}], "
        f"one for each image (empty, or {UNGROUPED}, where it is a group of its own)"
    )
