"""The images of train that are held out for validation: by the rule, or as a run kept them."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.data.sources import Source, Splits
from simclr_pl.core.errors import UserError
from simclr_pl.images.hashes import hashes
from simclr_pl.images.splits import holdout

Key = Literal["name", "place", "own"]
"""What images are known by: name or place; `own` where the data set brings a validation split."""


class HeldOut(NamedTuple):
    """The validation images of a run.

    Attributes:
        key: what the images are known by.
        seed: of the hashes.
        hashes: `uint64 [n]`, hashes of the images' keys in rising order. `None` for a run of an
            older version, which kept no hashes: its images are drawn again, by places.
    """

    key: Key
    seed: int
    hashes: np.ndarray[Any, np.dtype[np.uint64]] | None

    @classmethod
    def of(cls, splits: Splits, seed: int) -> "HeldOut":
        """The validation images of a data set, to be kept by a run.

        Args:
            splits: the data set, from `load`.
            seed: of the split.
        """
        held, names = splits.held, splits.val.names
        key: Key = "own" if held is None else "place" if names is None else "name"
        return cls(key, seed, np.sort(hashes(keys_of(splits), seed)))

    def check(self, *, own: bool) -> None:
        """Whether the data set still brings a validation split, or still brings none.

        Args:
            own: whether the data set brings one now.

        Raises:
            UserError: this has changed since the run began.
        """
        if self.hashes is not None and own != (self.key == "own"):
            was, now = "had one of its own", "has none"
            if own:
                was, now = "had none of its own, so that a part of train was held out", "has one"
            raise UserError(
                f"the validation split has changed: when the run began, the data set {was}, and "
                f"now it {now}: put the images back as they were, or start a new run"
            )

    def missing(self, splits: Splits) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Hashes of the run's validation images that these data's validation split lacks."""
        if self.hashes is None:
            return np.empty(0, np.uint64)
        keys = keys_of(splits)
        if self.key == "place" and splits.held is not None:
            keys = _places(splits.held.tolist())
        return np.setdiff1d(self.hashes, hashes(keys, self.seed))

    @property
    def digest(self) -> str:
        """Hexadecimal; the same for the same images."""
        assert self.hashes is not None
        return hashlib.blake2b(self.hashes.astype("<u8").tobytes(), digest_size=8).hexdigest()

    def among(self, train: Source, split_seed: int) -> Tensor:
        """Places of the run's validation images in train, in rising order; some may be gone.

        Args:
            train: with all of its labels.
            split_seed: of the draw, for a run of an older version.

        Raises:
            UserError: train has none of these images.
        """
        if self.hashes is None:
            return holdout(train.labels, split_seed)
        names = train.names if self.key == "name" else None
        keys = names or _places(range(len(train)))
        (places,) = np.isin(hashes(keys, self.seed), self.hashes).nonzero()
        if not len(places):
            raise UserError(
                f"none of the run's {len(self.hashes)} validation images is in these data: give "
                "the images that it was trained on, or start a new run"
            )
        return torch.from_numpy(places)


def _places(numbers: Iterable[int]) -> list[bytes]:
    """Keys of images without names."""
    return [b"%d" % number for number in numbers]


def keys_of(splits: Splits) -> Sequence[bytes]:
    """Keys of validation images: names, or places in train or in the data set's own split."""
    val, held = splits.val, splits.held
    return val.names or _places(range(len(val)) if held is None else held.tolist())


OLDER = HeldOut("place", 0, None)
"""What is known of a run of an older version."""
