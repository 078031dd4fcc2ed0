"""One image file: read once, decoded no larger than its crops need, and cropped.

A JPEG is stored as blocks of 8 x 8 frequencies. Without the higher ones they decode to 4 x 4, 2 x 2
or one pixel a block, which saves most of what a large image costs.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.parameters import MIN_SIDE
from simclr_pl.images.files.formats import decoders, kind_of
from simclr_pl.images.files.pixels import (
    Range,
    check_whole,
    has_sixteen_bits,
    sixteen_bit_range,
    to_rgb,
    turn_of,
)

LOOKED_AT = 100
"""Images of a set that are looked at for what all have in common."""

SCALES = (8, 4, 2, 1)
"""Pixels of a JPEG's row that may be decoded as one, from fewer frequencies."""

T = TypeVar("T")

Box = Sequence[float]
"""Top, left, height, width in pixels of the whole image."""


class BadImageError(UserError):
    """An image file that cannot be used.

    Args:
        message: a sentence with the file's name and the remedy.
        why: the reason alone.
    """

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why or message


def readable(places: Iterable[int], read: Callable[[int], T]) -> Iterator[T]:
    """Yields what `read` gives for the places of images that can be read.

    The others are named when a training reads them, by its own rule.

    Raises:
        UserError: none can be read; the sentence is of the first one.
    """
    said, some = None, False
    for place in places:
        try:
            found = read(place)
        except BadImageError as error:
            said = said or error
            continue
        some = True
        yield found
    if said and not some:
        raise UserError(str(said))


def first_readable(count: int, read: Callable[[int], T]) -> T:
    """What `read` gives for the first of the places 0 to `count` - 1 that can be read.

    Raises:
        UserError: as `readable`, for the first `LOOKED_AT`.
    """
    return next(readable(range(min(count, LOOKED_AT)), read))


class EncodedImage:
    """An image file that was read, but not decoded yet.

    Width and height are those of the upright image: EXIF's orientation is applied.

    Args:
        path: the file, or the image's name where `content` is given.
        max_pixels: largest number of pixels that the file's header may say.
        content: the file's bytes (default: they are read from `path`).

    Attributes:
        mode: Pillow's name for the bands and bits that the file's header says.
        is_deep: whether the file has 16 bits a band.

    Raises:
        BadImageError: the file is no readable image, the image is too small or too large, or bands
            or pages of it would be lost.
    """

    def __init__(
        self, path: str | Path, max_pixels: int = MAX_PIXELS, content: bytes | None = None
    ) -> None:
        self.path = path
        with self._named():
            self._bytes = Path(path).read_bytes() if content is None else content
            image = self._opened()
            check_whole(image)
            check_size(path, *image.size, max_pixels)
            self.is_deep = has_sixteen_bits(image)
            if image.format == "PNG" and b"eXIf" in self._bytes:
                image.load()  # the orientation may lie behind the pixels
            self._turn = turn_of(image)
        self.mode = image.mode
        self.width, self.height = image.size[:: -1 if self._turn.swaps else 1]
        self._is_jpeg = isinstance(image, JpegImageFile)
        self._header: ImageFile | None = image

    def scale(self, boxes: Sequence[Box], size: int) -> int:
        """How many pixels of a row may be decoded as one, so that no box has too few pixels.

        The scale is a function of the file and these boxes alone: other boxes change no bit.

        Args:
            boxes: boxes that are cut from one decoded image.
            size: pixels that each side of a box keeps, where it has as many.
        """
        shortest = min(min(height, width) for _, _, height, width in boxes)
        return next((s for s in SCALES if self._is_jpeg and shortest >= s * size), 1)

    def rgb(self, scale: int = 1) -> Image.Image:
        """The upright image, with one pixel for `scale` x `scale`, on white where transparent.

        Raises:
            BadImageError: the image cannot be decoded.
        """
        image = self.decoded(scale)
        with self._named():
            return self.upright(to_rgb(image))

    def sixteen_bits(self) -> Range | None:
        """The range that a file of 16 bits uses, decoded for it; `None` for other files."""
        with self._named():
            return sixteen_bit_range(self._opened()) if self.is_deep else None

    def upright(self, image: Image.Image) -> Image.Image:
        """A stored image as EXIF's orientation wants it."""
        return image if self._turn.how is None else image.transpose(self._turn.how)

    def decoded(self, scale: int = 1) -> ImageFile:
        """The stored image in the file's own mode, with one pixel for `scale` x `scale`.

        Raises:
            BadImageError: the image cannot be decoded.
        """
        with self._named():
            image, self._header = self._header or self._opened(), None
            stored = (self.width, self.height)[:: -1 if self._turn.swaps else 1]
            if scale > 1:
                image.draft(None, (stored[0] // scale, stored[1] // scale))
            image.load()
            if image.size != tuple(-(-side // scale) for side in stored):
                raise ValueError(f"its header says {self.width} x {self.height} pixels")
            return image

    def crops(self, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
        """Cuts boxes and resizes them, bilinear with antialiasing.

        Args:
            groups: boxes that share a decode, group by group.
            size: side S of the crops in pixels.
            out: `uint8 [K, 3, S, S]` for the K boxes of all groups.

        Raises:
            BadImageError: the image cannot be decoded.
        """
        places, decoded = iter(out.numpy()), dict[int, Image.Image]()
        for boxes in groups:
            scale = self.scale(boxes, size)
            if scale not in decoded:
                decoded[scale] = self.rgb(scale)
            for box in boxes:
                with without_pils_limit():
                    crop = cut_box(decoded[scale], box, scale, size, self.overhang(scale))
                next(places)[:] = np.asarray(crop).transpose(2, 0, 1)

    def overhang(self, scale: int) -> tuple[int, int]:
        """Pixels of the whole image by which a smaller decode begins left of, and above, the image.

        The last pixel of a stored row may stand for fewer than `scale` pixels. In an image that is
        turned, this pixel is the first.
        """
        mirrored = (self._turn.mirrors_x, self._turn.mirrors_y)
        sides = zip((self.width, self.height), mirrored, strict=True)
        left, top = (-side % scale if is_mirrored else 0 for side, is_mirrored in sides)
        return left, top

    def _opened(self) -> ImageFile:
        return Image.open(io.BytesIO(self._bytes), formats=decoders())

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A context whose errors become a `BadImageError` with the file's name."""
        try:
            with warnings.catch_warnings(), without_pils_limit():
                warnings.simplefilter("ignore")  # PIL warns of odd metadata in good images
                yield
        except (BadImageError, MemoryError):
            raise
        except Exception as error:  # PIL raises any error for broken files
            why = str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):  # PIL names the object it looked at
                why = kind_of(self._bytes)
            if isinstance(error, OSError) and error.strerror:
                why = error.strerror
            raise BadImageError(
                f"{self.path} cannot be decoded ({why}): remove it, or save it again", why
            ) from error


class DecodedImage:
    """Pixels in memory, from which crops are cut as from a file; see `EncodedImage`.

    Args:
        pixels: `uint8` or `float32` `[C, H, W]`.
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[1:]

    def crops(self, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
        """Cuts boxes and resizes them: `[K, C, S, S]` for the K boxes of all groups."""
        planes = [Image.fromarray(plane) for plane in self.pixels.numpy()]
        for place, box in zip(out.numpy(), (box for boxes in groups for box in boxes), strict=True):
            for channel, plane in zip(place, planes, strict=True):
                channel[:] = np.asarray(cut_box(plane, box, 1, size, (0, 0)))


def check_size(name: str | Path, width: int, height: int, max_pixels: int) -> None:
    """Refuses an image that is too small to crop, or larger than is allowed.

    Args:
        name: the image's name in the error.
        width: in pixels.
        height: in pixels.
        max_pixels: largest width x height.

    Raises:
        BadImageError: the image is too small or too large.
    """
    what = f"{width} x {height} pixels"
    if min(width, height) < MIN_SIDE:
        why = f"{what}, too small to crop"
        raise BadImageError(
            f"{name} is {why}: remove it (at least {MIN_SIDE} x {MIN_SIDE} are needed)", why
        )
    if width * height > max_pixels:
        why = f"{what}, which is more than max_pixels ({max_pixels}) allows"
        raise BadImageError(
            f"{name} is {why}: give --data.max_pixels {width * height} (of pack: "
            "--max_pixels), make the image smaller, or remove it",
            why,
        )


@contextmanager
def without_pils_limit() -> Iterator[None]:
    """A context without PIL's own limit of pixels: `EncodedImage` has checked `max_pixels`."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def cut_box(
    image: Image.Image, box: Box, scale: int, size: int, overhang: tuple[int, int]
) -> Image.Image:
    """A box of an image, resized to `size` x `size`; mirrored where the box leaves the image.

    Args:
        image: decoded with one pixel for `scale` x `scale`.
        box: in pixels of the whole image, whole numbers or fractions.
        scale: pixels of a row of the whole image that are one pixel here.
        size: side of the result in pixels.
        overhang: pixels of the whole image that `image` has left of, and above, it.
    """
    x0, y0 = box[1] + overhang[0], box[0] + overhang[1]
    top, left, bottom, right = (side / scale for side in (y0, x0, y0 + box[2], x0 + box[3]))
    # Whole pixels around the box are cut first, so that the filter sees nothing beyond the box but
    # the pixels that lie across its edges.
    x, y = math.floor(left), math.floor(top)
    crop = _whole_pixels(image, x, y, math.ceil(right), math.ceil(bottom))
    inner = (left - x, top - y, right - x, bottom - y)
    return crop.resize((size, size), Image.Resampling.BILINEAR, box=inner)


def _whole_pixels(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """The pixels of a box; beyond the image's edges they are mirrored, without the edge's own."""
    inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    crop = image.crop(inside)
    if inside == (left, top, right, bottom):
        return crop
    pixels = np.asarray(crop)
    border = (inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]), (0, 0)
    return Image.fromarray(np.pad(pixels, border[: pixels.ndim], mode="reflect"))
