"""Items of a map-style Dataset as images: read once into memory, or by workers."""

import sys
import traceback
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import MAX_PIXELS, ArrayImages, Source, Statistics, counted
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.core.views.parameters import MIN_SIDE
from simclr_pl.images.files.decode import (
    LOOKED_AT,
    BadImageError,
    DecodedImage,
    check_size,
    first_readable,
    readable,
)
from simclr_pl.images.files.pixels import to_rgb
from simclr_pl.images.numbers.sources import MemoryNumbers, Numbers, counted_in
from simclr_pl.images.readers.reader import OPTION, say_once
from simclr_pl.images.workers.crops import PHOTOGRAPHS, Opened, Reading
from simclr_pl.images.workers.images import WorkerImages, one_by_one

MEMORY_BYTES = 2 * 2**30
"""Images of one size are read once and kept up to this many bytes of pixels."""

_WANTED = (
    "an image must be a uint8 tensor [C, H, W] with pixels from 0 to 255, or a Pillow image "
    "(leave out ToTensor and Normalize: views and statistics are made here)"
)


class DatasetImages(WorkerImages):
    """Items of a map-style Dataset, unlabelled at first.

    Args:
        dataset: a Dataset of images, or of (image, label, ...).
        what: the data set's name in errors.
        reading: how images are read.
    """

    def __init__(self, dataset: Any, what: str, reading: Reading) -> None:
        super().__init__(torch.full((len(dataset),), UNLABELLED))
        self.dataset, self.what, self.reading = dataset, what, reading
        self.places = torch.arange(len(dataset))
        self.channels = 0  # unknown
        self.channels = len(first_readable(len(self), self.item)[0])

    def name(self, place: int) -> str:
        """The item's name in errors."""
        return f"item {int(self.places[place])} of {self.what}"

    def content(self, place: int) -> bytes:
        """An item's pixels as bytes."""
        return self.item(place)[0].numpy().tobytes()

    def statistics(self) -> Statistics:
        """Photographs' for 3 channels; else counted in up to `LOOKED_AT` evenly spread images."""
        if self.channels == 3:
            return PHOTOGRAPHS
        places = torch.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).long().tolist()
        most = self.reading.max_pixels
        pixels = readable(places, lambda place: self.checked(place, most).flatten(1))
        return counted(torch.cat(list(pixels), 1).unbind(0))

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> Opened:
        """Reads an item, from which crops are cut.

        Raises:
            BadImageError: reading fails, or the item is no image, has other channels than the first
                item, or is too small or too large.
        """
        return DecodedImage(self.checked(place, max_pixels))

    def checked(self, place: int, max_pixels: int) -> Tensor:
        """An item's pixels, `[C, H, W]`.

        Raises:
            BadImageError: as `open`.
        """
        (pixels, _), name = self.item(place), self.name(place)
        if len(pixels) != self.channels:
            why = f"{len(pixels)} channels, but the first item has {self.channels}"
            raise BadImageError(f"{OPTION}: {name} has {why}: give all images as many", why)
        check_size(name, pixels.shape[2], pixels.shape[1], max_pixels)
        return pixels

    def keep(self, index: Tensor) -> None:
        """Keeps the places at `index` alone."""
        self.places = self.places[index]

    def item(self, place: int) -> tuple[Tensor, Any]:
        """An item's pixels, `uint8 [C, H, W]`, and its label as it was given, or `None`.

        Raises:
            BadImageError: reading fails, or the item is no image.
        """
        name = self.name(place)
        try:
            item = self.dataset[int(self.places[place])]
        except UserError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{in_one_line(error)} at {last.filename}:{last.lineno}"
            raise BadImageError(f"{OPTION}: {name} cannot be read ({why})", why) from error
        several = isinstance(item, tuple | list)
        if several and not len(item):
            raise BadImageError(f"{OPTION}: {name} is empty, but {_WANTED}")
        image = item[0] if several else item
        label = item[1] if several and len(item) > 1 else None
        return _pixels(image, self.channels, name, numbers=self.reading.numbers), label


class NumberItems(Numbers, DatasetImages):
    """Items whose images are numbers of any depth: `uint8`, `uint16` or `float32` `[C, H, W]`."""

    pixel_dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """Of the first item that can be read."""
        return first_readable(len(self), self.numbers).dtype

    def numbers(self, place: int) -> Tensor:
        """An image's numbers: `[C, H, W]`.

        Raises:
            BadImageError: as `checked`.
        """
        return self.checked(place, self.reading.max_pixels)

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> DecodedImage:
        """Reads an item and puts it on a scale from 0 to 1."""
        return DecodedImage(self.scaled(self.checked(place, max_pixels)))

    def statistics(self) -> Statistics:
        """Counted in a sample."""
        return counted_in(self)


def _pixels(image: Any, channels: int, name: str, *, numbers: bool) -> Tensor:
    """`uint8 [C, H, W]`; a gray Pillow image is RGB unless `channels` is 1, or 0 for unknown.

    Numbers may be `uint16` or `float32`, too.
    """
    if numbers and isinstance(image, Image.Image) and image.mode.startswith("I;16"):
        return torch.from_numpy(np.array(image, np.uint16)[None])
    if numbers and isinstance(image, Tensor) and image.dtype in MemoryNumbers.dtypes:
        if bool(torch.isfinite(image.float()).all()) and image.dim() == 3:
            return image
        why = f"{image.dtype} {[*image.shape]}, or has NaN or infinite numbers"
        raise BadImageError(f"{OPTION}: {name} is {why}: give finite numbers [C, H, W]", why)
    if isinstance(image, Image.Image):
        try:
            gray = image.mode in ("1", "L") and channels in (0, 1)
            array = np.array(image.convert("L") if gray else to_rgb(image))
        except (OSError, ValueError) as error:
            raise BadImageError(f"{OPTION}: {name} cannot be read ({error})", str(error)) from error
        return torch.from_numpy(array[None] if gray else array.transpose(2, 0, 1).copy())
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3:
        kind = type(image).__name__
        found = f"{image.dtype} {[*image.shape]}" if isinstance(image, Tensor) else f"a {kind}"
        of_hub = "; what datasets.save_to_disk writes is read as hub:FOLDER"
        wanted = _WANTED + of_hub * isinstance(image, dict)
        raise BadImageError(f"{OPTION}: {name} is {found}, but {wanted}", f"{found}, no image")
    return image


def of_items(
    items: DatasetImages, labels: Tensor | None = None, *, declared: bool = True
) -> Source:
    """Images in memory where all have one size and fit; else images that workers read.

    Args:
        items: the images.
        labels: `int64 [N]` (default: the Dataset's own, which may mean that each item is read).
        declared: whether the Dataset's attributes `targets` and `labels` are the items' labels.

    Raises:
        UserError: an item that cannot be read, unless bad images are skipped.
    """
    count, found = len(items), list[int]()
    if labels is None and declared:
        labels = _declared(items.dataset, count, items.what)
    kept = _room_for(items)
    quiet = None if sys.stderr.isatty() else True
    places, said = one_by_one(items, range(count)), f"reading {items.what}"
    for place in tqdm(places, said, count, leave=False, delay=2, disable=quiet):
        if kept is None and labels is not None:
            break
        pixels, label = _readable(items, place)
        alike = kept is not None and pixels is not None and pixels.shape == kept.shape[1:]
        if kept is not None and pixels is not None and alike and pixels.dtype == kept.dtype:
            kept[place] = pixels
        elif kept is not None:
            why = "an image cannot be read" if pixels is None else "images differ in size or depth"
            say_once(f"{items.what}: {why}, workers read them in each epoch")
            kept = None
        if labels is None:
            found.append(label_of(label, items.name(place)))
    labels = torch.tensor(found) if labels is None else labels
    if kept is None:
        return items.relabel(labels)
    return (ArrayImages if kept.dtype == torch.uint8 else MemoryNumbers)(kept, labels)


def _room_for(items: DatasetImages) -> Tensor | None:
    """Memory for all images, if they are as large as the first; `None` where they do not fit."""
    first, _ = _readable(items, 0)
    if first is None or min(first.shape[1:]) < MIN_SIDE:
        return None
    if first.nbytes * len(items) > MEMORY_BYTES:
        return None
    say_once(f"{items.what}: {len(items)} images are read once and kept in memory")
    return torch.empty(len(items), *first.shape, dtype=first.dtype)


def _readable(items: DatasetImages, place: int) -> tuple[Tensor | None, Any]:
    """An item's pixels and label; `None` twice for a bad item, where these are skipped."""
    try:
        return items.item(place)
    except BadImageError:
        if items.reading.on_bad_image == "error":
            raise
        return None, None


def _declared(dataset: Any, count: int, what: str) -> Tensor | None:
    """The labels that a Dataset has as `targets` or `labels`, where there is one for each item."""
    for name in ("targets", "labels"):
        given: Any = getattr(dataset, name, None)
        if hasattr(given, "__len__") and len(given) == count:
            return whole_labels(given, what)
    return None


def label_of(given: Any, name: str) -> int:
    """An item's label; `UNLABELLED` for `None`.

    Raises:
        UserError: no whole number.
    """
    if given is None:
        return UNLABELLED
    number = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    if not isinstance(number, int | np.integer):
        raise UserError(
            f"{OPTION}: the label of {name} is {' '.join(repr(given).split())[:40]}, but must be a "
            f"whole number (None or {UNLABELLED} where it is unknown); --data.labels none trains "
            "without labels"
        )
    return int(number)


def whole_labels(given: Any, what: str) -> Tensor:
    """Labels of a split, `int64 [N]`.

    Raises:
        UserError: no whole numbers, or several for an image.
    """
    whole = torch.as_tensor(np.asarray(given))
    if whole.dim() != 1 or whole.is_floating_point() or whole.is_complex():
        raise UserError(
            f"{OPTION}: labels of {what} are {whole.dtype} {[*whole.shape]}, but must be whole "
            "numbers [N], one for each image"
        )
    return whole.long()
