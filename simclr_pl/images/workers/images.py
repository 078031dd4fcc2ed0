"""Sources whose images worker processes read: files, and the items of a Dataset."""

import copy
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import MAX_PIXELS, Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.files.decode import EncodedImage
from simclr_pl.images.workers.crops import PHOTOGRAPHS, Crops, Opened, Read, Reading, kinds, side_of
from simclr_pl.images.workers.processes import batches_of, check_room, end_workers, loader_of
from simclr_pl.images.workers.unreadable import Unreadable


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
        self._loaders: dict[tuple[Cut, bool], tuple[list[Any], DataLoader[Read]]] = {}
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
        return twin

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields crops `[B, K, C, S, S]`; see `Batch.images`.

        Where images that cannot be read are stepped over, other images take their rows in training;
        in evaluation a batch has fewer rows, and perhaps none.
        """
        if (cut, training) not in self._loaders:
            if self.views is None:
                raise ValueError("call prepared before asking for batches")
            crop = self.channels * side_of(self.views, cut) ** 2 * self.pixel_dtype.itemsize
            largest = max(map(len, plan), default=0) * sum(kinds(cut, self.views.count)) * crop
            check_room(largest, self.workers, len(plan))
            crops = Crops(self.relabel(self.labels), self.views, cut, training=training)
            asked = list[Any]()
            loader = loader_of(crops.read, asked, self.workers, pinned=torch.cuda.is_available())
            self._loaders[cut, training] = asked, loader
        asked, loader = self._loaders[cut, training]
        asked[:] = [(epoch, index.numpy()) for index in plan]
        missing = 0
        for done, read in enumerate(batches_of(loader), 1):
            for path, why in read.bad:
                if self.unreadable is not None:
                    self.unreadable.add(path, why)
            missing += len(plan[done - 1]) - len(read.batch.labels)
            if done == len(plan):  # now, since a caller may not ask for a batch behind the last
                self._say_missing(missing, sum(map(len, plan)))
            yield read.batch

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
        """Ends the worker processes; the next batches start new ones."""
        for _, loader in self._loaders.values():
            end_workers(loader)
        self._loaders.clear()

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


class ImageFiles(WorkerImages):
    """Image files, decoded to RGB by worker processes.

    Args:
        paths: the files.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        root: folder of the split, which holds all files; without it images have no names.
        names: of the images, where they are not the paths below `root`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        root: Path | None = None,
        names: Sequence[bytes] | None = None,
    ) -> None:
        super().__init__(labels)
        self.paths, self.root, self.given = list(paths), root, names

    @property
    def names(self) -> Sequence[bytes] | None:
        """As they were given, or paths below `root`; `None` without either."""
        if self.given is not None or self.root is None:
            return self.given
        start = len(self.root.parts)
        return [os.fsencode("/".join(path.parts[start:])) for path in self.paths]

    def name(self, place: int) -> Path:
        """The file's path."""
        return self.paths[place]

    def content(self, place: int) -> bytes:
        """The file's bytes."""
        return self.paths[place].read_bytes()

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> EncodedImage:
        """Reads a file and its header."""
        return EncodedImage(self.paths[place], max_pixels)

    def keep(self, index: Tensor) -> None:
        """Keeps the paths at `index` alone."""
        places = index.tolist()
        self.paths = [self.paths[i] for i in places]
        self.given = self.given and [self.given[i] for i in places]
