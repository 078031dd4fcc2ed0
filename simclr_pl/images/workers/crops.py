"""What workers do: files are decoded and cut; a bad one is an error, or is stepped over."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import MAX_PIXELS, OnBadImage, Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.randomness import epoch_order
from simclr_pl.core.views.crop import CLEAN_SHARE, centre_boxes
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.files.decode import BadImageError, Box, EncodedImage

PHOTOGRAPHS = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's: what images of three channels are normalised with that nobody has counted."""

CHUNK = 32
"""Files that a worker holds at a time."""


class Reading(NamedTuple):
    """How files are read.

    Attributes:
        on_bad_image: whether one that cannot be read is an error, or is stepped over.
        max_pixels: of an image.
    """

    on_bad_image: OnBadImage = "error"
    max_pixels: int = MAX_PIXELS


class Opened(Protocol):
    """An image that crops can be cut from: of a file, or one that is decoded."""

    height: int
    width: int

    def crops(self, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
        """Cuts boxes, group by group, to `uint8 [K, C, S, S]`."""


class Items(Protocol):
    """Images that workers read one by one: files, or the items of a Dataset."""

    channels: int

    def __len__(self) -> int:
        """N."""

    @property
    def names(self) -> Sequence[bytes] | None:
        """Of each image, the same in every place that it is copied to; `None` without."""

    def select(self, index: Tensor) -> "Items":
        """Those at `index`."""

    def name(self, place: int) -> str | Path:
        """What to call an image in errors."""

    def content(self, place: int) -> bytes:
        """What tells an image from another."""

    def statistics(self) -> Statistics:
        """What they are to be normalised with."""

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> Opened:
        """Reads an image; raises `BadImageError` where that cannot be done."""


class FileItems:
    """Image files, which are decoded to RGB.

    Args:
        paths: the files.
        root: folder of the split, that all paths begin with; without it images have no names.
    """

    channels = 3

    def __init__(self, paths: Sequence[Path], root: Path | None = None) -> None:
        self.paths, self.root = list(paths), root

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> Sequence[bytes] | None:
        """Paths below `root`; `None` without one."""
        if self.root is None:
            return None
        start = len(self.root.parts)
        return [os.fsencode("/".join(path.parts[start:])) for path in self.paths]

    def select(self, index: Tensor) -> "FileItems":
        """The files at `index`."""
        return FileItems([self.paths[i] for i in index.tolist()], self.root)

    def name(self, place: int) -> Path:
        """The file's path."""
        return self.paths[place]

    def content(self, place: int) -> bytes:
        """The file's bytes."""
        return self.paths[place].read_bytes()

    def statistics(self) -> Statistics:
        """Those of photographs."""
        return PHOTOGRAPHS

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> EncodedImage:
        """Reads a file and its header."""
        return EncodedImage(self.paths[place], max_pixels)


def kinds(cut: Cut, views: int) -> list[int]:
    """How many crops of an image are decoded together: of its views, and of the clean image."""
    return {"views": [views], "clean": [1], "both": [views, 1]}[cut]


class Place(NamedTuple):
    """Which image, in which epoch."""

    epoch: int
    image: int


class Read(NamedTuple):
    """A batch, and what was left out of it.

    Attributes:
        batch: in evaluation with fewer rows than were asked for, and perhaps none.
        bad: files that could not be read, with the reason.
        missing: how many rows the batch has less than were asked for.
    """

    batch: Batch
    bad: list[tuple[str | Path, str]]
    missing: int


class Crops(Dataset[Read]):
    """Decodes a batch of files and cuts what is wanted of each.

    A file that cannot be read is stepped over, if that is asked for. In training the image at place
    p of the epoch's order gives way to the first readable one at places p + N/2, p + N/2 + 1, ...
    (mod N): a function of the files alone, so that ranks, workers and resumes agree, and a batch
    keeps its size. In evaluation its row is left out: each image counts once, or not at all.

    Args:
        items: the N images.
        labels: `int64 [N]`.
        views: what boxes and the epoch's order hang on.
        cut: whether views, the clean image or both are wanted.
        reading: how files are read.
        training: whether rows are replaced; else they are left out.
    """

    def __init__(
        self,
        items: Items,
        labels: Tensor,
        views: SimCLRViews,
        cut: Cut,
        reading: Reading,
        *,
        training: bool,
    ) -> None:
        self.items, self.labels, self.views, self.cut = items, labels, views, cut
        self.reading, self.training = reading, training
        self.kinds = kinds(cut, views.count)
        self._order: tuple[int, Tensor] | None = None

    def __getitems__(self, places: list[Place]) -> Read:
        """Reads one batch.

        Raises:
            UserError: a file that cannot be read, where that is an error; or all of them.
        """
        epoch, size = places[0].epoch, self.views.image_size
        index = torch.tensor([place.image for place in places])
        shape = (sum(self.kinds), self.items.channels, size, size)
        crops = torch.empty(len(index), *shape, dtype=torch.uint8)
        failed = self._cut(index, epoch, crops)
        if failed and self.reading.on_bad_image == "error":
            raise UserError(str(failed[min(failed)]))
        bad = [(self.items.name(int(index[row])), failed[row].why) for row in sorted(failed)]
        if self.training:
            for row, error in failed.items():
                bad += self._replace(row, error, index, epoch, crops)
        elif failed:
            kept = [row for row in range(len(index)) if row not in failed]
            index, crops = index[kept], crops[kept]
        batch = Batch(crops, self.labels[index], index, epoch)
        return Read(batch, bad, len(places) - len(index))

    def _cut(self, index: Tensor, epoch: int, crops: Tensor) -> dict[int, BadImageError]:
        """Fills the rows of images that can be read; says what is wrong with the others."""
        failed: dict[int, BadImageError] = {}
        for rows in torch.arange(len(index)).split(CHUNK):
            files: dict[int, Opened] = {}
            for row in rows.tolist():
                try:
                    files[row] = self.items.open(int(index[row]), self.reading.max_pixels)
                except BadImageError as error:
                    failed[row] = error
            if not files:
                continue
            boxes = self._boxes(index[list(files)], epoch, list(files.values()))
            # Views and the clean image are decoded as if the other had not been asked for.
            groups = zip(*(kind.tolist() for kind in boxes.split(self.kinds, 1)), strict=True)
            for (row, file), of_file in zip(files.items(), groups, strict=True):
                try:
                    file.crops(of_file, self.views.image_size, crops[row])
                except BadImageError as error:
                    failed[row] = error
        return failed

    def _replace(
        self, row: int, error: BadImageError, index: Tensor, epoch: int, crops: Tensor
    ) -> list[tuple[str | Path, str]]:
        """Puts another image into a row; returns those that could not be read either."""
        bad: list[tuple[str | Path, str]] = []
        for image in self._instead_of(int(index[row]), epoch):
            failed = self._cut(torch.tensor([image]), epoch, crops[row : row + 1])
            if not failed:
                index[row] = image
                return bad
            bad.append((self.items.name(image), failed[0].why))
        raise UserError(str(error))  # of all files none can be read

    def _instead_of(self, image: int, epoch: int) -> Iterator[int]:
        """Images in the order in which they are taken for one that cannot be read."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.views.seed, epoch, len(self.items))
        order = self._order[1]
        first = int((order == image).nonzero()) + len(order) // 2
        return (int(order[(first + step) % len(order)]) for step in range(len(order)))

    def _boxes(self, index: Tensor, epoch: int, files: Sequence[Opened]) -> Tensor:
        """`int64 [B, K, 4]`: the views' boxes, then the clean one, as far as they are wanted."""
        height = torch.tensor([file.height for file in files])
        width = torch.tensor([file.width for file in files])
        boxes: list[Tensor] = []
        if self.cut != "clean":
            count = self.views.count
            view = torch.arange(count).repeat_interleave(len(index))
            how = self.views.draw(index.repeat(count), epoch, view)
            boxes += self.views.boxes(how, height.repeat(count), width.repeat(count)).chunk(count)
        if self.cut != "views":
            boxes.append(centre_boxes(height, width, CLEAN_SHARE))
        return torch.stack(boxes, 1)
