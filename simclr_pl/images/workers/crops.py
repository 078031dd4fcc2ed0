"""The work of worker processes: images are opened and cropped; bad ones end the run or give way."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import MAX_PIXELS, OnBadImage, Pages, Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.randomness import epoch_order
from simclr_pl.core.views.crop import CLEAN_SHARE, centre_boxes
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.files.decode import BadImageError, Box

PHOTOGRAPHS = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's statistics, for images of three channels whose pixels nobody has counted."""

CHUNK = 32
"""Images that a worker holds at a time."""

Places = np.ndarray[Any, np.dtype[np.int64]]
"""Of a batch's images in their split."""


class Reading(NamedTuple):
    """How images are read.

    Attributes:
        on_bad_image: whether an image that cannot be read is an error, or is stepped over.
        max_pixels: larger images count as images that cannot be read.
        numbers: whether images are numbers of any depth, since a range is given.
        pages: what the pages of a file are, where it has several.
    """

    on_bad_image: OnBadImage = "error"
    max_pixels: int = MAX_PIXELS
    numbers: bool = False
    pages: Pages | None = None


class Opened(Protocol):
    """An image that crops can be cut from: a file's bytes, or decoded pixels."""

    height: int
    width: int

    def crops(self, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
        """Cuts boxes, group by group, to `[K, C, S, S]` of the images' `pixel_dtype`."""


class Images(Protocol):
    """Images that a worker opens one by one; see `WorkerImages`."""

    labels: Tensor
    groups: Tensor | None
    channels: int
    pixel_dtype: torch.dtype
    reading: Reading

    def __len__(self) -> int:
        """N."""

    def name(self, place: int) -> str | Path:
        """The image's name in errors."""

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> Opened:
        """Reads an image; raises `BadImageError` for one that cannot be read."""

    def ahead(self, places: Tensor) -> None:
        """Hears which images are opened next."""


def kinds(cut: Cut, views: int) -> list[int]:
    """Crops of an image that share a decode: its V views, and the clean image alone."""
    return {"views": [views], "clean": [1], "both": [views, 1]}[cut]


def side_of(views: SimCLRViews, cut: Cut) -> int:
    """Side of a worker's crops in pixels: S, or more where the device is to turn them."""
    return views.image_size if cut == "clean" else getattr(views, "cut_size", views.image_size)


class Read(NamedTuple):
    """A batch, and the images that could not be read for it.

    Attributes:
        batch: in evaluation with fewer rows than were asked for, and perhaps none.
        bad: names of images that could not be read, with the reason.
    """

    batch: Batch
    bad: list[tuple[str | Path, str]]


class Work:
    """Reads batches of images, cut as is wanted of each.

    Args:
        images: the N images.
        views: the paper's views, which give boxes and the seed.
    """

    def __init__(self, images: Images, views: SimCLRViews) -> None:
        self.images, self.views = images, views
        self._crops: dict[tuple[Cut, bool], Crops] = {}

    def __call__(self, places: Places, cut: Cut, training: bool, epoch: int) -> Read:
        """Reads one batch; see `Crops`."""
        if (cut, training) not in self._crops:
            self._crops[cut, training] = Crops(self.images, self.views, cut, training=training)
        return self._crops[cut, training].read(places, epoch)


class Crops:
    """Opens the images of a batch and cuts the views, the clean image, or both from each.

    An image that cannot be read is stepped over, if that is asked for. In training the image at
    place p of the epoch's order gives way to the first readable one at places p + N/2,
    p + N/2 + 1, ... (mod N): a function of the files alone, so that ranks, workers and resumes
    agree, and a batch keeps its size. In evaluation its row is left out: each image counts once,
    or not at all.

    Args:
        images: the N images.
        views: the paper's views, which give boxes and the seed.
        cut: whether views, the clean image or both are wanted.
        training: whether other images take the rows of images that cannot be read; else these rows
            are left out.
    """

    def __init__(self, images: Images, views: SimCLRViews, cut: Cut, *, training: bool) -> None:
        self.images, self.views, self.cut, self.training = images, views, cut, training
        self.kinds, self.side = kinds(cut, views.count), side_of(views, cut)
        self._order: tuple[int, Tensor] | None = None

    def read(self, places: Places, epoch: int) -> Read:
        """Reads one batch.

        Args:
            places: `int64 [B]`, of the images in the split.
            epoch: that the views are of.

        Raises:
            UserError: an image that cannot be read, where that is an error; or all of them.
        """
        index = torch.tensor(places)
        shape = (sum(self.kinds), self.images.channels, self.side, self.side)
        crops = torch.empty(len(index), *shape, dtype=self.images.pixel_dtype)
        self.images.ahead(index)
        failed = self._cut(index, epoch, crops)
        if failed and self.images.reading.on_bad_image == "error":
            raise UserError(str(failed[min(failed)]))
        bad = [(self.images.name(int(index[row])), failed[row].why) for row in sorted(failed)]
        if self.training:
            for row, error in failed.items():
                bad += self._replace(row, error, index, epoch, crops)
        elif failed:
            kept = [row for row in range(len(index)) if row not in failed]
            index, crops = index[kept], crops[kept]
        groups = None if self.images.groups is None else self.images.groups[index]
        return Read(Batch(crops, self.images.labels[index], index, epoch, groups=groups), bad)

    def _cut(self, index: Tensor, epoch: int, crops: Tensor) -> dict[int, BadImageError]:
        """Fills the rows of images that can be read; returns the errors of the other rows."""
        failed: dict[int, BadImageError] = {}
        for rows in torch.arange(len(index)).split(CHUNK):
            files: dict[int, Opened] = {}
            for row in rows.tolist():
                try:
                    files[row] = self.images.open(int(index[row]), self.images.reading.max_pixels)
                except BadImageError as error:
                    failed[row] = error
            if not files:
                continue
            boxes = self._boxes(index[list(files)], epoch, list(files.values()))
            # Views and the clean image are decoded as if the other had not been asked for.
            groups = zip(*(kind.tolist() for kind in boxes.split(self.kinds, 1)), strict=True)
            for (row, file), of_file in zip(files.items(), groups, strict=True):
                try:
                    self._cut_one(file, of_file, crops[row])
                except BadImageError as error:
                    failed[row] = error
        return failed

    def _cut_one(self, file: Opened, groups: Sequence[Sequence[Box]], crops: Tensor) -> None:
        """Fills an image's crops. A clean image smaller than they are lies in the top left."""
        size = self.views.image_size
        if self.side == size or self.cut == "views":
            file.crops(groups, self.side, crops)
            return
        views, clean = groups
        file.crops([views], self.side, crops[:-1])
        file.crops([clean], size, crops[-1:].zero_()[..., :size, :size])

    def _replace(
        self, row: int, error: BadImageError, index: Tensor, epoch: int, crops: Tensor
    ) -> list[tuple[str | Path, str]]:
        """Puts another image into a row; returns the images that could not be read either."""
        bad: list[tuple[str | Path, str]] = []
        for image in self._instead_of(int(index[row]), epoch):
            failed = self._cut(torch.tensor([image]), epoch, crops[row : row + 1])
            if not failed:
                index[row] = image
                return bad
            bad.append((self.images.name(image), failed[0].why))
        raise UserError(str(error))  # no image can be read

    def _instead_of(self, image: int, epoch: int) -> Iterator[int]:
        """Images in the order in which they are taken for one that cannot be read."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.views.seed, epoch, len(self.images))
        order = self._order[1]
        first = int((order == image).nonzero()) + len(order) // 2
        return (int(order[(first + step) % len(order)]) for step in range(len(order)))

    def _boxes(self, index: Tensor, epoch: int, files: Sequence[Opened]) -> Tensor:
        """`[B, K, 4]`: the views' boxes, then the clean image's, as far as `cut` has them."""
        height = torch.tensor([file.height for file in files])
        width = torch.tensor([file.width for file in files])
        boxes: list[Tensor] = []
        if self.cut != "clean":
            count = self.views.count
            view = torch.arange(count).repeat_interleave(len(index))
            how = self.views.draw(index.repeat(count), epoch, view)
            box_of = getattr(self.views, "hulls", self.views.boxes)
            boxes += box_of(how, height.repeat(count), width.repeat(count)).chunk(count)
        if self.cut != "views":
            boxes.append(centre_boxes(height, width, CLEAN_SHARE))
        return torch.stack(boxes, 1)
