"""Sources of numbers: in memory, or in files that workers read."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import (
    MAX_PIXELS,
    MOST_COUNTED,
    ArrayImages,
    Pages,
    Range,
    Source,
    Statistics,
    counted,
)
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.decode import BadImageError, DecodedImage, first_readable, readable
from simclr_pl.images.names import Names, Paths
from simclr_pl.images.numbers.read import page_count, read_numbers, window_of
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import ImageFiles, one_by_one

SAMPLE = 500
"""Files whose numbers are counted for mean and standard deviation, evenly spread."""

WINDOWS = 20
"""Files that are asked for their window."""

LEVELS = 2**16 - 1
"""Statistics are counted in so many steps from 0 to 1."""


class Numbers(ABC):
    """A `Source` of images that are numbers of any depth, given out as `float32` from 0 to 1.

    Attributes:
        range: the numbers that are 0 and 1; numbers beyond are clipped. `None` until it is known.
    """

    range: Range | None = None
    channels: int
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the numbers as they are stored."""

    @property
    def window(self) -> Range | None:
        """The range that all images of a sample say of themselves, if they do."""
        return None

    @abstractmethod
    def numbers(self, place: int) -> Tensor:
        """An image's numbers as they are stored: `[C, H, W]`."""

    def within(self, found: Range | None) -> Self:
        """The same images, with that range."""
        twin = copy.copy(self)
        twin.range = found
        return twin

    def scaled(self, numbers: Tensor) -> Tensor:
        """Numbers on a scale of 0 to 1, `float32`, clipped."""
        assert self.range is not None
        low, high = self.range
        return (numbers.float() - low).div_(high - low).clamp_(0, 1)


class MemoryNumbers(Numbers, ArrayImages):
    """Images of numbers in one tensor.

    Args:
        images: `uint8`, `uint16` or `float32` `[N, C, H, W]`, on any device.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
    """

    dtypes = (torch.uint8, torch.uint16, torch.float32)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.images.dtype

    def numbers(self, place: int) -> Tensor:
        """An image's numbers: `[C, H, W]`."""
        return self.images[place]

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields whole images, `float32` in [0, 1]."""
        for batch in super().batches(plan, epoch, cut, training=training):
            yield batch._replace(images=self.scaled(batch.images))

    def statistics(self) -> Statistics:
        """Counted, of at most `MOST_COUNTED` images."""
        some = self.images[:: -(-len(self) // MOST_COUNTED)]
        return counted((_steps(self.scaled(channel)) for channel in some.unbind(1)), LEVELS)


class NumberFiles(Numbers, ImageFiles):
    """Image files whose numbers are read as they are, by worker processes.

    Args:
        paths: the files.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        names: of the images; `None` without names.
        pages: what the pages of a file are, where it has several.
        reading: how files are read.
    """

    pixel_dtype = torch.float32

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        names: Names | None = None,
        pages: Pages | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.meaning, self.reading = pages, reading or Reading()
        self.pages: list[int | None] = [None] * len(paths)
        self.files = torch.arange(len(paths))
        """`int64 [N]`, the place in `paths` as given, of each image's file."""
        if pages == "images":
            counts = [page_count(path) for path in paths]
            self.files = torch.arange(len(paths)).repeat_interleave(torch.tensor(counts))
            self.pages = [page for count in counts for page in range(count)]
            paths, labels = Paths.of(paths).at(self.files), labels[self.files]
            names = names and names.at(self.files)
        super().__init__(paths, labels, names)
        self.channels = 0  # unknown
        first = first_readable(len(self), self.numbers)
        self.channels, self._dtype = len(first), first.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of the first file that can be read."""
        return self._dtype

    @property
    def names(self) -> Sequence[bytes] | None:
        """Names of files, with `#PAGE` where pages are images; `None` without names."""
        names = super().names
        if names is None or self.meaning != "images":
            return names
        return [
            name + b"#%d" % int(page or 0) for name, page in zip(names, self.pages, strict=True)
        ]

    def numbers(self, place: int) -> Tensor:
        """An image's numbers: `[C, H, W]`.

        Raises:
            BadImageError: the file cannot be read, has other channels than the first one, or
                numbers that are not finite.
        """
        path = self.paths[place]
        read = read_numbers(path, self.pages[place], self.meaning, self.reading.max_pixels)
        if self.channels not in (0, len(read)):
            why = f"{len(read)} channels, but the first image has {self.channels}"
            raise BadImageError(f"{path} has {why}: give all images as many, or remove it", why)
        return read

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> DecodedImage:  # type: ignore[override]
        """Reads an image and puts it on a scale from 0 to 1."""
        return DecodedImage(self.scaled(self.numbers(place)))

    @property
    def window(self) -> Range | None:
        """The window of DICOM files, where the first files all have the same."""
        found = {window_of(path) for path in self.paths[:WINDOWS]}
        return found.pop() if len(found) == 1 else None

    def keep(self, index: Tensor) -> None:
        """Keeps the images at `index` alone."""
        super().keep(index)
        self.pages = [self.pages[i] for i in index.tolist()]

    def statistics(self) -> Statistics:
        """Counted in a sample."""
        return counted_in(self)


def numbers_of(source: Source, pages: Pages | None) -> Numbers | None:
    """The same images as numbers; `None` for a source that has 8-bit pixels and nothing else."""
    if isinstance(source, Numbers):
        return source
    if isinstance(source, ArrayImages):
        kept = MemoryNumbers(source.images, source.labels)
        kept.groups, kept.group_names = source.groups, source.group_names
        return kept
    if type(source) is ImageFiles:
        of = source.paths, source.labels, source.given
        found = NumberFiles(*of, pages, source.reading)
        if source.groups is not None:
            found.groups, found.group_names = source.groups[found.files], source.group_names
        return found
    return None


def check_finite(images: Tensor, what: str) -> None:
    """Refuses images `[N, C, H, W]` with numbers that are NaN or infinite.

    Raises:
        UserError: names the first such image.
    """
    if not images.is_floating_point():
        return
    bad = [n for n, image in enumerate(images) if not bool(torch.isfinite(image).all())]
    if bad:
        raise UserError(
            f"{what} has {len(bad)} images with NaN or infinite numbers (the first one is image "
            f"{bad[0]}): replace these numbers, or leave the images out"
        )


def _steps(unit: Tensor) -> Tensor:
    return unit.mul(LEVELS).round_().int()


def counted_in(source: Numbers) -> Statistics:
    """Statistics of at most `SAMPLE` images that are read one by one, evenly spread.

    Raises:
        UserError: none can be read; the sentence is of the first one.
    """
    places = torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long().unique()

    def steps(place: int) -> Tensor:
        return _steps(source.scaled(source.numbers(place).flatten(1)))

    found = list(readable(one_by_one(source, places.tolist()), steps))
    return counted(torch.cat(found, 1).unbind(0), LEVELS)
