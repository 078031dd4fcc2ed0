"""Images of a column of a `datasets.Dataset`, decoded as files are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import in_one_line
from simclr_pl.images.files.decode import BadImageError, Box, EncodedImage
from simclr_pl.images.readers.items import DatasetImages
from simclr_pl.images.readers.reader import OPTION
from simclr_pl.images.workers.crops import Opened, Reading
from simclr_pl.images.workers.images import WorkerImages

GRAY = ("1", "L")
"""Pillow's modes of images that stay one channel."""

LOOKED_AT = 100
"""Images whose headers say whether a set is gray, evenly spread."""


class HubImages(DatasetImages):
    """Images of one split, unlabelled at first.

    An image's name is the path that the column keeps, where each image has one of its own: below
    the split's folder where that is part of the path, else below `folder`.

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

        WorkerImages.__init__(self, torch.full((len(dataset),), UNLABELLED))
        encoded = dataset.select_columns([column]).with_format(None)
        encoded = encoded.cast_column(column, Image(decode=False))
        self.dataset, self.column, self.what, self.reading = encoded, column, what, reading
        self.places = torch.arange(len(dataset))
        self.paths = _paths(encoded, column, folder / str(dataset.split), folder)

    @property
    def names(self) -> Sequence[bytes] | None:
        """Paths of the images; `None` where some have none, or two have the same."""
        return None if self.paths is None else [self.paths[i] for i in self.places.tolist()]

    def name(self, place: int) -> str:
        """The item's name in errors, with its path."""
        number = int(self.places[place])
        path = "" if self.paths is None else f" ({self.paths[number].decode()})"
        return f"{self.what} item {number}{path}"

    def content(self, place: int) -> bytes:
        """The file's bytes."""
        return self._bytes(place)

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> Opened:
        """Reads an image and its header."""
        image = self._encoded(place, max_pixels)
        return image if self.channels == 3 else GrayImage(image)

    def item(self, place: int) -> tuple[Tensor, Any]:
        """An item's pixels, `uint8 [C, H, W]`; its label is known from elsewhere.

        Raises:
            BadImageError: the image cannot be read.
        """
        rgb = np.asarray(self._encoded(place, self.reading.max_pixels).rgb())
        return torch.from_numpy(rgb.transpose(2, 0, 1)[: self.channels].copy()), None

    def look(self) -> int:
        """The channels of all images: 1 where up to `LOOKED_AT` of them are gray, else 3."""
        places = torch.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).long().tolist()
        modes = set()
        for place in places:
            try:
                modes.add(EncodedImage("", MAX_PIXELS, self._bytes(place)).mode)
            except BadImageError:  # its turn to be named comes
                continue
        return 1 if modes and modes <= set(GRAY) else 3

    def _encoded(self, place: int, max_pixels: int) -> EncodedImage:
        name = self.name(place)
        image = EncodedImage(name, max_pixels, self._bytes(place))
        if self.channels == 1 and image.mode not in GRAY:
            why = "colours, but the other images are gray"
            raise BadImageError(
                f"{OPTION}: {name} has {why}: write channels: 3 below init_args", why
            )
        return image

    def _bytes(self, place: int) -> bytes:
        """An image's bytes, of the column or of the file that the column names."""
        name = self.name(place)
        try:
            stored = self.dataset[int(self.places[place])][self.column] or {}
            content, path = stored.get("bytes"), stored.get("path")
            if content is not None:
                return bytes(content)
            if path:
                return Path(path).read_bytes()
        except Exception as error:  # the library raises anything
            why = in_one_line(error)
            raise BadImageError(f"{OPTION}: {name} cannot be read ({why})", why) from error
        raise BadImageError(f"{OPTION}: {name} is empty: remove it, or give it an image", "empty")


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
    """The path of each image, below the first folder that holds all."""
    flat = dataset.flatten()
    table = flat.select_columns([f"{column}.path"]).with_format("arrow")[:]
    paths = table.column(0).to_pylist()
    if None in paths or len(set(paths)) < len(paths):
        return None
    for folder in folders:
        start = f"{folder.as_posix()}/"
        if all(path.startswith(start) for path in paths):
            return [path.removeprefix(start).encode() for path in paths]
    return [path.encode() for path in paths]
