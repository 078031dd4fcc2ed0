"""Sources whose images worker processes read: files, and the items of a Dataset."""

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import MAX_PIXELS, Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.files.decode import EncodedImage
from simclr_pl.images.names import Names, Paths
from simclr_pl.images.workers.crops import PHOTOGRAPHS, Opened, Reading, Work, kinds, side_of
from simclr_pl.images.workers.pool import Pass, Pool, shared_pool
from simclr_pl.images.workers.room import batches_ahead
from simclr_pl.images.workers.unreadable import Unreadable

TOGETHER = 64
"""Images that are fetched together where they are read one by one."""

Following = Callable[[], tuple[Sequence[Tensor], int]]
"""Gives the plan of an epoch, and the epoch."""


class WorkerImages(ABC):
    """Images that worker processes read, once for all views; a `Source`.

    The views' boxes are pure functions of (seed, epoch, index), so that a worker can cut them from
    the image. The device does the rest of the augmentation. A subclass knows the images: files, or
    the items of a Dataset.

    Args:
        labels: `int64 [N]`, `UNLABELLED` where unknown.
    """

    channels = 3
    side: int | None = None
    groups: Tensor | None = None
    """`int64 [N]`, `UNGROUPED` where an image is a group of its own; `None` without groups."""
    group_names: Sequence[bytes] = ()
    """Names of the groups, in the order of their numbers."""
    pixel_dtype = torch.uint8
    """Of crops."""
    reading = Reading()
    """How images are read."""
    unreadable: Unreadable | None = None
    """Records the images that cannot be read."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.views: SimCLRViews | None = None
        self.workers = 0
        self._pool: Pool | None = None
        self._number = 0
        self._ahead: dict[Cut, int] = {}
        self._following: Following | None = None
        self._missing = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Sequence[bytes] | None:
        """Names of the images; `None` without names."""
        return None

    @abstractmethod
    def name(self, place: int) -> str | Path:
        """The image's name in errors."""

    @abstractmethod
    def content(self, place: int) -> bytes:
        """Bytes that differ where images differ."""

    @abstractmethod
    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> Opened:
        """Reads an image.

        Raises:
            BadImageError: the image cannot be read.
        """

    def ahead(self, places: Tensor) -> None:  # noqa: B027 - most sources have nothing to fetch
        """Hears which images are opened next, so that they can be fetched together."""

    @abstractmethod
    def keep(self, index: Tensor) -> None:
        """Keeps the images at `index` alone."""

    def statistics(self) -> Statistics:
        """Mean and standard deviation of photographs."""
        return PHOTOGRAPHS

    @property
    def stored(self) -> str:
        """What reads the images, in words."""
        return f"decoded by {self.workers or 'no'} workers a device"

    def prepared(self, paper: SimCLRViews, views: Any, workers: int) -> Self:
        """The same images, cut into the boxes of the paper's views by so many processes.

        Raises:
            UserError: views of another kind, for which workers cut no boxes.
        """
        if not isinstance(views, SimCLRViews):
            raise UserError(
                "data.views: workers cut the views' boxes of image files as SimCLRViews says: make "
                "your class a subclass of it, or pack the folder (python -m simclr_pl pack)"
            )
        twin = self.relabel(self.labels)
        twin.views, twin.workers = paper, workers
        # All splits are prepared for the same views, and share workers.
        twin._pool = shared_pool(paper, workers)
        twin._number = twin._pool.join(twin)
        return twin

    def work(self) -> Work:
        """What workers do: they read a batch."""
        assert self.views is not None
        return Work(self.relabel(self.labels), self.views)

    def expect(self, following: Following) -> None:
        """Hears what training will ask for behind the epoch that it asks for next.

        Args:
            following: gives plan and epoch, as `batches` takes them.
        """
        self._following = following

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields crops `[B, K, C, S, S]`; see `Batch.images`.

        Where images that cannot be read are stepped over, other images take their rows in training;
        in evaluation a batch has fewer rows, and perhaps none.
        """
        if self.views is None or self._pool is None:
            raise ValueError("call prepared before asking for batches")
        if cut not in self._ahead:
            largest = self.batch_bytes(max(map(len, plan), default=0), cut)
            self._ahead[cut] = batches_ahead(largest, self.workers, len(plan))
        asked = Pass(self._number, plan, cut, training, epoch, most_ahead=self._ahead[cut])
        if training and self._following is not None:
            asked.after = _following(self._following, asked)
            self._following = None
        missing = 0
        for done, read in enumerate(self._pool.results(asked), 1):
            for path, why in read.bad:
                if self.unreadable is not None:
                    self.unreadable.add(path, why)
            missing += len(plan[done - 1]) - len(read.batch.labels)
            if done == len(plan):  # now, since a caller may not ask for a batch behind the last
                self._say_missing(missing, sum(map(len, plan)))
            yield read.batch

    def batch_bytes(self, images: int, cut: Cut) -> int:
        """The size of a batch of so many images."""
        assert self.views is not None
        crop = self.channels * side_of(self.views, cut) ** 2 * self.pixel_dtype.itemsize
        return images * sum(kinds(cut, self.views.count)) * crop

    def _say_missing(self, missing: int, images: int) -> None:
        """Prints how many images an evaluation has left out, where the number has changed."""
        if missing not in (0, self._missing):
            sys.stdout.write(
                f"{missing} of {images} images cannot be read: they are left out here\n"
            )
            self._missing = missing

    def on(self, device: torch.device, room: float) -> Self:
        """The same images: workers read them when they are wanted."""
        return self

    def close(self) -> None:
        """Ends the worker processes, once no split needs them; the next batches start new ones."""
        if self._pool is not None:
            self._pool.close(self._number)
        self._ahead.clear()

    def select(self, index: Tensor) -> Self:
        """The images at `index`, as a split of their own."""
        twin = self.relabel(self.labels[index])
        twin.groups = None if self.groups is None else self.groups[index]
        twin.keep(index)
        return twin

    def relabel(self, labels: Tensor) -> Self:
        """The same images with other labels, and without workers."""
        twin = copy.copy(self)
        WorkerImages.__init__(twin, labels)
        return twin


def _following(following: Following, asked: Pass) -> Callable[[], Pass]:
    """What gives the pass behind another one, of the same images."""
    member, (cut, training, _) = asked.member, asked.how

    def after() -> Pass:
        plan, epoch = following()
        return Pass(member, plan, cut, training, epoch)

    return after


def one_by_one(source: object, places: Sequence[int]) -> Iterator[int]:
    """Yields the places of images that are read one by one; far ones are fetched together.

    Raises:
        UserError: images that cannot be fetched.
    """
    for first in range(0, len(places), TOGETHER):
        some = places[first : first + TOGETHER]
        if isinstance(source, WorkerImages):
            source.ahead(torch.tensor(some))
        yield from some


class ImageFiles(WorkerImages):
    """Image files, decoded to RGB by worker processes.

    Args:
        paths: the files.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        names: of the images; `None` without names.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, names: Names | None = None) -> None:
        super().__init__(labels)
        self.paths, self.given = Paths.of(paths), names

    @property
    def names(self) -> Sequence[bytes] | None:
        """As they were given."""
        return self.given

    def name(self, place: int) -> Path:
        """The file's path."""
        path: Path = self.paths[place]
        return path

    def content(self, place: int) -> bytes:
        """The file's bytes."""
        return self.name(place).read_bytes()

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> EncodedImage:
        """Reads a file and its header."""
        return EncodedImage(self.name(place), max_pixels)

    def keep(self, index: Tensor) -> None:
        """Keeps the paths at `index` alone."""
        self.paths = self.paths.at(index)
        self.given = self.given and self.given.at(index)
