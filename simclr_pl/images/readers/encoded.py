"""Items of a Dataset that are encoded images, decoded as files are: in a column, or files."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import MAX_PIXELS, Source
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.images.files.decode import LOOKED_AT, BadImageError, Box, EncodedImage, readable
from simclr_pl.images.files.pixels import Range
from simclr_pl.images.files.sample import check_ranges
from simclr_pl.images.numbers.read import read_numbers
from simclr_pl.images.readers.items import DatasetImages, NumberItems, of_items
from simclr_pl.images.readers.reader import OPTION, Raw
from simclr_pl.images.workers.crops import Opened, Reading
from simclr_pl.images.workers.images import WorkerImages, one_by_one

GRAY = ("1", "L")
"""Pillow's modes of images that stay one channel."""


class EncodedItems(DatasetImages):
    """Encoded images by their number, unlabelled at first.

    Args:
        dataset: a Dataset, in a form that the subclass knows.
        what: the data set and the split, which begin the images' names in errors.
        reading: how images are read.
    """

    remedy = "give --data.range auto, which reads all of their bits"
    """Of images of 16 bits that use few of them."""

    def __init__(self, dataset: Any, what: str, reading: Reading) -> None:
        WorkerImages.__init__(self, torch.full((len(dataset),), UNLABELLED))
        self.dataset, self.what, self.reading = dataset, what, reading
        self.places = torch.arange(len(dataset))
        self.channels = 3

    @abstractmethod
    def stored_at(self, number: int) -> tuple[bytes | None, str | None, Any]:
        """An item's bytes, or else the path of its file; and its label, or `None`."""

    def name(self, place: int) -> str:
        """The item's name in errors."""
        return f"{self.what} item {int(self.places[place])}"

    def content(self, place: int) -> bytes:
        """The file's bytes."""
        return self._stored(place)[0]

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> Opened:
        """Reads an image and its header."""
        image, _ = self._encoded(place, max_pixels)
        return image if self.channels == 3 else GrayImage(image)

    def item(self, place: int) -> tuple[Tensor, Any]:
        """An item's pixels, `uint8 [C, H, W]`, and its label, or `None`.

        Raises:
            BadImageError: the image cannot be read.
        """
        image, label = self._encoded(place, self.reading.max_pixels)
        rgb = np.asarray(image.rgb())
        return torch.from_numpy(rgb.transpose(2, 0, 1)[: self.channels].copy()), label

    def look(self) -> int:
        """The channels of all images, of which up to `LOOKED_AT` are looked at together.

        Raises:
            UserError: images of 16 bits that use few of them; no image of numbers can be read.
        """
        places = torch.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).long()
        return self._channels_of(places.tolist())

    def _channels_of(self, places: Sequence[int]) -> int:
        """1 where all images at these places are gray, else 3."""
        modes, ranges = set(), list[Range]()
        for place in one_by_one(self, places):
            try:
                image = EncodedImage("", MAX_PIXELS, self.content(place))
                ranges += [found] if (found := image.sixteen_bits()) else []
            except BadImageError:  # its turn to be named comes
                continue
            modes.add(image.mode)
        check_ranges(self.what, ranges, self.remedy)
        return 1 if modes and modes <= set(GRAY) else 3

    def _encoded(self, place: int, max_pixels: int) -> tuple[EncodedImage, Any]:
        name, (content, label) = self.name(place), self._stored(place)
        image = EncodedImage(name, max_pixels, content)
        if self.channels == 1 and image.mode not in GRAY:
            why = "colours, but the other images are gray"
            raise BadImageError(f"{OPTION}: {name} has {why}: give --data.dataset.channels 3", why)
        return image, label

    def _stored(self, place: int) -> tuple[bytes, Any]:
        """An item's bytes and label.

        Raises:
            BadImageError: they cannot be read.
        """
        name = self.name(place)
        try:
            content, path, label = self.stored_at(int(self.places[place]))
            if content is None and path:
                content = Path(path).read_bytes()
        except UserError:  # about the whole set: a server that does not answer
            raise
        except Exception as error:  # somebody else's code raises anything
            why = in_one_line(error)
            raise BadImageError(f"{OPTION}: {name} cannot be read ({why})", why) from error
        if content is None:
            raise BadImageError(
                f"{OPTION}: {name} is empty: remove it, or give it an image", "empty"
            )
        return content, label


class EncodedNumbers(NumberItems, EncodedItems):
    """Encoded images that are read as numbers of any depth and any number of bands."""

    def item(self, place: int) -> tuple[Tensor, Any]:
        """An item's numbers, `[C, H, W]`, and its label, or `None`.

        Raises:
            BadImageError: see `read_numbers`.
        """
        how, (content, label) = self.reading, self._stored(place)
        return read_numbers(self.name(place), None, how.pages, how.max_pixels, content), label

    def _channels_of(self, places: Sequence[int]) -> int:
        """Those of the first image that can be read."""
        return len(next(readable(places, self.item))[0])


def raw_of(
    items: Mapping[str, EncodedItems],
    channels: int | None,
    labels: Mapping[str, Tensor],
    classes: tuple[str, ...],
) -> Raw:
    """Splits of images, in memory or read by workers.

    Args:
        items: by the split's name, train among them.
        channels: of all images; `None`: as many as those of train have that are looked at.
        labels: `int64 [N]` of each split that has some.
        classes: names in the order of labels.
    """
    looked, read = items["train"].look(), dict[str, Source]()
    for split, images in items.items():
        images.channels = channels or looked
        none = torch.full((len(images),), UNLABELLED)
        read[split] = of_items(images, labels.get(split, none))
    return Raw(**read, classes=classes)


def check_channels(channels: int | None, reading: Reading) -> None:
    """Whether images can be read as an option of the data set, `channels`, wants them.

    Raises:
        UserError: they cannot; or the pages of a file are to be images.
    """
    if channels is not None and reading.numbers:
        raise UserError(
            f"{OPTION}.init_args.channels is for images of 8 bits, and with --data.range all bands "
            "are read: leave channels out"
        )
    if channels not in (None, 1, 3):
        raise UserError(f"{OPTION}.init_args.channels is {channels!r}, but must be 1 or 3")
    if reading.pages == "images":
        raise UserError(
            f"data.pages is images, but an item of {OPTION} is one image: save each page as an item"
        )


class FileItems(EncodedItems):
    """Items of a Dataset that gives (path, label), where its `loader` reads nothing."""

    remedy = "save them with 8 bits"

    def name(self, place: int) -> str:
        """The item's name in errors, with its file."""
        return f"{super().name(place)} ({self.dataset[int(self.places[place])][0]})"

    def stored_at(self, number: int) -> tuple[bytes | None, str | None, Any]:
        """The item's path and label."""
        path, label = self.dataset[number]
        return None, str(path), label


class HubImages(EncodedItems):
    """Images of one split of the library `datasets`, unlabelled at first.

    An image's name is the path that the column keeps, where each image has one of its own: below
    the split's folder where that is part of the path, else below `folder`. A path of another folder
    is no name, since it is another one on each machine.

    Args:
        dataset: a `datasets.Dataset`.
        column: the column of images.
        what: the data set and the split, which begin the images' names in errors.
        reading: how images are read.
        folder: the folder that the data set was read from, if it was.
    """

    def __init__(
        self, dataset: Any, column: str, what: str, reading: Reading, folder: Path
    ) -> None:
        from datasets import Image

        encoded = dataset.select_columns([column]).with_format(None)
        encoded = encoded.cast_column(column, Image(decode=False))
        super().__init__(encoded, what, reading)
        self.column = column
        self.paths = _paths(encoded, column, folder / str(dataset.split), folder)

    @property
    def names(self) -> Sequence[bytes] | None:
        """Paths of the images; `None` where some have none, or two have the same."""
        return None if self.paths is None else [self.paths[i] for i in self.places.tolist()]

    def name(self, place: int) -> str:
        """The item's name in errors, with its path."""
        path = None if self.paths is None else self.paths[int(self.places[place])].decode()
        return super().name(place) + ("" if path is None else f" ({path})")

    def stored_at(self, number: int) -> tuple[bytes | None, str | None, Any]:
        """The bytes, or the path, that the column keeps."""
        stored = self.dataset[number][self.column] or {}
        return stored.get("bytes"), stored.get("path"), None


class HubNumbers(EncodedNumbers, HubImages):
    """Images of one split of the library `datasets`, as numbers."""


class GrayImage:
    """A gray image, whose crops have one channel; see `EncodedImage`."""

    def __init__(self, image: EncodedImage) -> None:
        self.image, self.height, self.width = image, image.height, image.width

    def crops(self, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
        """Cuts boxes and resizes them: `uint8 [K, 1, S, S]` for the K boxes of all groups."""
        rgb = out.new_empty(len(out), 3, size, size)
        self.image.crops(groups, size, rgb)
        out.copy_(rgb[:, :1])


def _paths(dataset: Any, column: str, *folders: Path) -> list[bytes] | None:
    """The path of each image, below the first folder that holds all.

    A path of another place, as in the library's cache, is another one on each machine: no name.
    """
    flat = dataset.flatten()
    table = flat.select_columns([f"{column}.path"]).with_format("arrow")[:]
    paths = table.column(0).to_pylist()
    if None in paths or len(set(paths)) < len(paths):
        return None
    for folder in folders:
        start = f"{folder.as_posix()}/"
        if all(path.startswith(start) for path in paths):
            return [path.removeprefix(start).encode() for path in paths]
    elsewhere = any(Path(path).is_absolute() or "://" in path for path in paths)
    return None if elsewhere else [path.encode() for path in paths]
