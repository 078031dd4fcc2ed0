"""Images that worker processes read: files, and the items of a Dataset."""

import copy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.workers.crops import Crops, FileItems, Items, Place, Read, Reading, kinds
from simclr_pl.images.workers.processes import batches_of, begin, check_room, end_workers, sent
from simclr_pl.images.workers.unreadable import Unreadable


class WorkerImages:
    """Images that worker processes read, once for all views.

    The views' boxes are pure functions of (seed, epoch, index), so that a worker can cut them from
    the image; the rest of the augmentation is done on the device.

    Args:
        items: the images.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
    """

    side: int | None = None
    reading = Reading()
    """How images are read."""
    unreadable: Unreadable | None = None
    """Is told of those that cannot be."""

    def __init__(self, items: Items, labels: Tensor) -> None:
        self.items, self.labels = items, labels
        self.channels = items.channels
        self.views: SimCLRViews | None = None
        self.workers = 0
        self._loaders: dict[tuple[Cut, bool], tuple[_Plan, DataLoader[Read]]] = {}
        self._missing = 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> Sequence[bytes] | None:
        """Of each image, where images have names."""
        return self.items.names

    @property
    def stored(self) -> str:
        """In words."""
        return f"decoded by {self.workers or 'no'} workers a device"

    def prepared(self, paper: SimCLRViews, views: Any, workers: int) -> Self:
        """The same images, cut as the paper's views say, by so many processes.

        Raises:
            UserError: views of another kind, of which the workers cut no boxes.
        """
        if not isinstance(views, SimCLRViews):
            raise UserError(
                "data.views: workers cut the views' boxes of image files as SimCLRViews says: make "
                "your class a subclass of it, or pack the folder (python -m simclr_pl pack)"
            )
        twin = self._twin(self.items, self.labels)
        twin.views, twin.workers = paper, workers
        return twin

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields crops `uint8 [B, K, C, S, S]`; see `Batch.images`.

        Where images that cannot be read are stepped over, others take their rows in training; else
        a batch has fewer rows, and perhaps none.
        """
        if (cut, training) not in self._loaders:
            if self.views is None:
                raise ValueError("call prepared before asking for batches")
            crop = self.channels * self.views.image_size**2
            largest = max(map(len, plan), default=0) * sum(kinds(cut, self.views.count)) * crop
            check_room(largest, self.workers, len(plan))
            sampler = _Plan()
            loader = DataLoader(
                Crops(self.items, self.labels, self.views, cut, self.reading, training=training),
                batch_sampler=sampler,
                num_workers=self.workers,
                collate_fn=sent,
                worker_init_fn=begin,
                persistent_workers=self.workers > 0,
                pin_memory=torch.cuda.is_available(),
            )
            self._loaders[cut, training] = (sampler, loader)
        sampler, loader = self._loaders[cut, training]
        sampler.plan, sampler.epoch = plan, epoch
        missing = 0
        for done, read in enumerate(batches_of(loader), 1):
            for path, why in read.bad:
                if self.unreadable is not None:
                    self.unreadable.add(path, why)
            missing += read.missing
            if done == len(plan):  # said now: who knows the number of batches asks for no more
                self._say_missing(missing, sum(map(len, plan)))
            yield read.batch

    def _say_missing(self, missing: int, images: int) -> None:
        """Says how many rows an evaluation has been left with, where that has changed."""
        if missing not in (0, self._missing):
            sys.stdout.write(
                f"{missing} of {images} images cannot be read: they are left out here\n"
            )
            self._missing = missing

    def statistics(self) -> Statistics:
        """What they are to be normalised with."""
        return self.items.statistics()

    def content(self, place: int) -> bytes:
        """What tells an image from another."""
        return self.items.content(place)

    def on(self, device: torch.device, room: float) -> Self:
        """Itself: images are read when they are wanted."""
        return self

    def close(self) -> None:
        """Ends the worker processes; the next batches start new ones."""
        for _, loader in self._loaders.values():
            end_workers(loader)
        self._loaders.clear()

    def select(self, index: Tensor) -> Self:
        """The images at `index`, as a split of their own."""
        return self._twin(self.items.select(index), self.labels[index])

    def relabel(self, labels: Tensor) -> Self:
        """The same images with other labels."""
        return self._twin(self.items, labels)

    def _twin(self, items: Items, labels: Tensor) -> Self:
        """Other images of the same kind, without workers."""
        twin = copy.copy(self)
        WorkerImages.__init__(twin, items, labels)
        return twin


class ImageFiles(WorkerImages):
    """Image files, decoded to RGB by worker processes.

    Args:
        paths: the files.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        root: folder of the split, that all paths begin with; without it images have no names.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, root: Path | None = None) -> None:
        super().__init__(FileItems(paths, root), labels)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        assert isinstance(self.items, FileItems)
        return self.items.paths


class _Plan:
    """A batch sampler whose epoch and indices are set before each pass."""

    plan: Sequence[Tensor] = ()
    epoch = 0

    def __iter__(self) -> Iterator[list[Place]]:
        for index in self.plan:
            yield [Place(self.epoch, i) for i in index.tolist()]

    def __len__(self) -> int:
        return len(self.plan)
