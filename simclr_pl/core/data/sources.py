"""Where images come from: one tensor in memory, what workers read, or a mapped file.

(The last one is in `packed`.)

A source is a split's images with labels. It is asked for the batches of an epoch, as lists of
indices, and yields them as `Batch`; it knows nothing of ranks, orders or augmentation beyond the
boxes to cut.

Images have names where they come from files: the path below the folder of their split, as bytes
(`os.fsencode`) with `/` between its parts. It is the same in every place that a folder is copied
to, and in the packed set that is written of it.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.decode import MIN_SIDE
from simclr_pl.images.packed import PackedImages
from simclr_pl.images.unreadable import Unreadable
from simclr_pl.images.worker_crops import KINDS, Crops, FileItems, Items, Place, Read, Reading
from simclr_pl.images.worker_processes import batches_of, begin, check_room, end_workers, sent


class ArrayImages:
    """Images that live in one uint8 tensor.

    Args:
        images: `uint8 [N, C, H, W]`, on any device.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
    """

    names: Sequence[bytes] | None = None
    """Of no image: each has its place in the tensor."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dim() != 4 or images.dtype != torch.uint8 or len(images) != len(labels):
            raise UserError(
                f"images must be uint8 [N, C, H, W] with N labels, not {images.dtype} "
                f"{[*images.shape]} with {len(labels)}"
            )
        if min(images.shape[-2:]) < MIN_SIDE:
            raise UserError(
                f"images are {images.shape[-2]} x {images.shape[-1]} pixels, too small to crop: "
                f"at least {MIN_SIDE} x {MIN_SIDE} are needed"
            )
        self.images, self.labels = images, labels
        self.channels = images.shape[1]
        self.side: int | None = min(images.shape[-2:])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Sequence[Tensor], epoch: int, cut: Cut) -> Iterator[Batch]:
        """Yields whole images, whatever `cut` is: views are made on the device."""
        device = self.images.device
        # Out of pinned memory a GPU fetches them while the host goes on.
        pinned = device.type == "cpu" and torch.cuda.is_available()
        for index in plan:
            labels = self.labels[index].to(device, non_blocking=True)
            there = index.to(device, non_blocking=True)
            images = self.images.new_empty(len(index), *self.images.shape[1:], pin_memory=pinned)
            torch.index_select(self.images, 0, there, out=images)
            yield Batch(images, labels, there, epoch)

    def select(self, index: Tensor) -> "ArrayImages":
        """The images at `index`, as a split of their own."""
        return ArrayImages(self.images[index], self.labels[index])

    def relabel(self, labels: Tensor) -> "ArrayImages":
        """The same images with other labels."""
        return ArrayImages(self.images, labels)

    def bytes_to(self, device: torch.device) -> int:
        """How many bytes of that device's memory `to` would take."""
        return 0 if self.images.device == device else self.images.nbytes

    def to(self, device: torch.device) -> "ArrayImages":
        """The same images on another device; labels and plan stay on the CPU."""
        return ArrayImages(self.images.to(device), self.labels)


class WorkerImages:
    """Images that worker processes read, once for all views.

    The views' boxes are pure functions of (seed, epoch, index), so that a worker can cut them from
    the image; the rest of the augmentation is done on the device.

    Args:
        items: the images.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
    """

    side: int | None = None

    def __init__(self, items: Items, labels: Tensor) -> None:
        self.items, self.labels = items, labels
        self.channels = items.channels
        self.views: SimCLRViews | None = None
        self.workers = 0
        self.reading = Reading()
        self.unreadable: Unreadable | None = None
        self._loaders: dict[tuple[Cut, bool], tuple[_Plan, DataLoader[Read]]] = {}
        self._missing = 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> Sequence[bytes] | None:
        """Of each image, where images have names."""
        return self.items.names

    def with_views(
        self,
        views: SimCLRViews,
        workers: int,
        reading: Reading = Reading(),  # noqa: B008 - a constant
        unreadable: Unreadable | None = None,
    ) -> Self:
        """The same images, cut as `views` says.

        Args:
            views: whose boxes are cut.
            workers: processes that do it; 0: in this one.
            reading: how images are read.
            unreadable: is told of those that cannot be.
        """
        twin = self._twin(self.items, self.labels)
        twin.views, twin.workers = views, workers
        twin.reading, twin.unreadable = reading, unreadable
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
                raise ValueError("call with_views before asking for batches")
            crop = self.channels * self.views.image_size**2
            largest = max(map(len, plan), default=0) * sum(KINDS[cut]) * crop
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


AnySource = ArrayImages | WorkerImages | PackedImages


class Splits(NamedTuple):
    """A data set's images.

    Attributes:
        train: what pretraining sees; labels of the validation holdout are `UNLABELLED`.
        val: for callbacks and every choice.
        test: for one score at the end, or `None`.
        classes: names in the order of labels; empty where nothing is labelled.
        held: `int64 [n]`, places in train of what is held out for validation; `None` where the data
            set brings a validation split of its own.
    """

    train: AnySource
    val: AnySource
    test: AnySource | None
    classes: tuple[str, ...]
    held: Tensor | None = None


class _Plan:
    """A batch sampler whose epoch and indices are set before each pass."""

    plan: Sequence[Tensor] = ()
    epoch = 0

    def __iter__(self) -> Iterator[list[Place]]:
        for index in self.plan:
            yield [Place(self.epoch, i) for i in index.tolist()]

    def __len__(self) -> int:
        return len(self.plan)
