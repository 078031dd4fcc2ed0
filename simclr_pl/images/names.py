"""Names and paths of millions of images in one buffer."""

import copy
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

_SLASH = ord("/")

_MANY = 2**16
"""Names whose places are worked out at a time."""


class Names(Sequence[bytes]):
    """Names in one buffer: as many bytes as letters, and 8 for each name.

    A list of as many `bytes` is several times as large, and workers would copy it: Python counts
    references inside the objects that it reads. Forked workers share the arrays of this class with
    their parent, which nobody writes to; spawned workers get them as shared memory. (That is what
    the tensors are for, and why they are kept: a process that is being spawned finds their memory
    only while they are there.)

    Args:
        letters: `uint8`, all names, one behind the other.
        ends: `int64 [M]`, where each name ends.
        places: `int64 [N]`, which of the M names these are, in their order; `None` for all.
    """

    def __init__(self, letters: Array, ends: Array, places: Array | None = None) -> None:
        self._letters, self._ends = torch.from_numpy(letters), torch.from_numpy(ends)
        self._places = None if places is None else torch.from_numpy(places)

    @property
    def letters(self) -> Array:
        """All names, one behind the other, `uint8`."""
        return self._letters.numpy()

    @property
    def ends(self) -> Array:
        """Where each name of the buffer ends, `int64 [M]`."""
        return self._ends.numpy()

    @property
    def places(self) -> Array | None:
        """Which names of the buffer these are, `int64 [N]`; `None` for all."""
        return None if self._places is None else self._places.numpy()

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Self:
        """The same names, which may come from an iterator."""
        letters, sizes = bytearray(), array("i")
        for name in names:
            letters += name
            sizes.append(len(name))
        return cls.joined(letters, sizes)

    @classmethod
    def joined(cls, letters: bytearray, sizes: "array[int]") -> Self:
        """The names that lie in a buffer, one behind the other, of so many bytes each."""
        return cls(np.frombuffer(letters, np.uint8), np.cumsum(sizes, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends if self.places is None else self.places)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(self.at(np.arange(len(self))[place]))
        if not 0 <= place < len(self):
            raise IndexError(place)
        at = place if self.places is None else self.places[place]
        return self.letters[self.ends[at - 1] if at else 0 : self.ends[at]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        letters = self.letters.data
        for first in range(0, len(self), _MANY):
            many = slice(first, first + _MANY)
            some = np.arange(len(self))[many] if self.places is None else self.places[many]
            starts = np.where(some > 0, self.ends[some - 1], 0)
            for start, end in zip(starts.tolist(), self.ends[some].tolist(), strict=True):
                yield bytes(letters[start:end])

    def sizes(self) -> Array:
        """Letters of each name, `int64 [N]`."""
        every = np.diff(self.ends, prepend=0)
        return every if self.places is None else every[self.places]

    def at(self, index: Array | Tensor) -> Self:
        """The names at `index`, in the same buffer."""
        index = torch.from_numpy(np.ascontiguousarray(index))
        some = copy.copy(self)
        some._places = index if self._places is None else self._places[index]
        return some

    def words(self, index: Array, depth: int) -> Array:
        """Eight letters of the names at `index` behind so many, as numbers, `uint64`.

        Slashes are zeros, and so is what is behind a name.
        """
        places = index if self.places is None else self.places[index]
        found = np.zeros(len(places), np.uint64)
        for first in range(0, len(places), _MANY):
            some = places[first : first + _MANY]
            ends = self.ends[some]
            starts = np.where(some > 0, self.ends[some - 1], 0) + depth
            for letter in range(8):
                at = starts + letter
                there = self.letters[np.minimum(at, len(self.letters) - 1)] * (at < ends)
                there[there == _SLASH] = 0
                found[first : first + _MANY] <<= np.uint64(8)
                found[first : first + _MANY] |= there
        return found


def order_of(names: Names) -> Array:
    """Places of paths in the order of a folder's images, `int64 [N]`; of two alike, the first.

    Those without a folder come first, then by the names of folders, then of files: a slash comes
    before any letter.
    """
    # (A list of ten million keys would be larger than the names.)
    in_folder = np.fromiter((name.find(b"/") > 0 for name in names), bool, len(names))
    order = in_folder.argsort(kind="stable")
    begins = np.ones(len(names), bool)
    begins[1:] = in_folder[order[1:]] != in_folder[order[:-1]]
    sizes, depth = names.sizes(), 0
    while True:
        # Runs of names that are alike so far are sorted by their next 8 letters.
        unsettled = ~begins | ~np.append(begins[1:], True)
        (at,) = np.nonzero(unsettled)
        if not len(at) or depth >= sizes[order[at]].max():
            return order
        words = names.words(order[at], depth)
        ranked = np.lexsort((words, begins[at].cumsum()))
        order[at], words = order[at][ranked], words[ranked]
        begins[at[1:]] |= words[1:] != words[:-1]
        depth += 8


class Paths(Sequence[Path]):
    """Paths in one buffer, see `Names`.

    Args:
        folder: of the paths that are not absolute.
        names: the paths below `folder`.
    """

    def __init__(self, folder: Path, names: Names) -> None:
        self.folder, self.names = folder, names

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Paths":
        """The same paths."""
        return paths if isinstance(paths, Paths) else cls(Path(), Names.of(map(os.fsencode, paths)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: Any) -> Any:
        found = self.names[place]
        return [*map(self._path, found)] if isinstance(place, slice) else self._path(found)

    def __iter__(self) -> Iterator[Path]:
        return map(self._path, self.names)

    def texts(self) -> Iterator[str]:
        """The paths as text, which takes a fifth of the time."""
        return (os.path.join(self.folder, os.fsdecode(name)) for name in self.names)  # noqa: PTH118

    def at(self, index: Array | Tensor) -> "Paths":
        """The paths at `index`, in the same buffer."""
        return Paths(self.folder, self.names.at(index))

    def _path(self, name: bytes) -> Path:
        return self.folder / os.fsdecode(name)
