"""One image file: read once, decoded no larger than its crops need, and cut.

A JPEG is stored as blocks of 8 x 8 frequencies. Without the higher ones they decode to 4 x 4, 2 x 2
or one pixel a block, which saves most of what a large image costs.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.parameters import MIN_SIDE
from simclr_pl.images.files.formats import decoders, kind_of
from simclr_pl.images.files.pixels import check_whole, to_rgb, turn_of

SCALES = (8, 4, 2, 1)
"""Pixels of a JPEG's line that may become one by decoding fewer frequencies."""

Box = Sequence[int]
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


class EncodedImage:
    """A file's bytes, and what its header says.

    Width and height are those of the upright image: EXIF's orientation is applied.

    Args:
        path: the file.
        max_pixels: of the whole image; a file that says it has more is refused.

    Raises:
        BadImageError: no readable image, one that is too small or too large, or one of which bands
            or pages would be lost.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.path = path
        with self._named():
            self._bytes = path.read_bytes()
            image = self._opened()
            check_whole(image)
            check_size(path, *image.size, max_pixels)
            if image.format == "PNG" and b"eXIf" in self._bytes:
                image.load()  # it may lie behind the pixels
            self._turn = turn_of(image)
        self.width, self.height = image.size[:: -1 if self._turn.swaps else 1]
        self._is_jpeg = isinstance(image, JpegImageFile)
        self._header: Image.Image | None = image

    def scale(self, boxes: Sequence[Box], size: int) -> int:
        """How many pixels of a line decode to one, so that no box has too few of them.

        It hangs on the file and these boxes alone. What else is cut of the image changes no bit.

        Args:
            boxes: what is cut of the decoded image.
            size: pixels that each side of a box should have left, where it has as many.
        """
        shortest = min(min(height, width) for _, _, height, width in boxes)
        return next((s for s in SCALES if self._is_jpeg and shortest >= s * size), 1)

    def rgb(self, scale: int = 1) -> Image.Image:
        """The upright image, with one pixel for `scale` x `scale`, on white where transparent.

        Raises:
            BadImageError: it cannot be decoded.
        """
        with self._named():
            image, self._header = self._header or self._opened(), None
            stored = (self.width, self.height)[:: -1 if self._turn.swaps else 1]
            if scale > 1:
                image.draft(None, (stored[0] // scale, stored[1] // scale))
            image.load()
            if image.size != tuple(-(-side // scale) for side in stored):
                raise ValueError(f"its header says {self.width} x {self.height} pixels")
            whole = to_rgb(image)
            return whole if self._turn.how is None else whole.transpose(self._turn.how)

    def crops(self, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
        """As `crops_of` cuts them."""
        crops_of(self, groups, size, out)

    def overhang(self, scale: int) -> tuple[int, int]:
        """Pixels of the whole image by which a smaller decode begins left of it, and above it.

        The last pixel of a line may stand for fewer than `scale`. Turned, it is the first.
        """
        mirrored = (self._turn.mirrors_x, self._turn.mirrors_y)
        sides = zip((self.width, self.height), mirrored, strict=True)
        left, top = (-side % scale if is_mirrored else 0 for side, is_mirrored in sides)
        return left, top

    def _opened(self) -> ImageFile:
        return Image.open(io.BytesIO(self._bytes), formats=decoders())

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Whatever is wrong with the file is said with its name."""
        try:
            with warnings.catch_warnings(), without_pils_limit():
                warnings.simplefilter("ignore")  # of PIL, about odd metadata in good images
                yield
        except (BadImageError, MemoryError):
            raise
        except Exception as error:  # of broken files PIL raises anything
            why = str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):  # PIL names the object it looked at
                why = kind_of(self._bytes)
            if isinstance(error, OSError) and error.strerror:
                why = error.strerror
            raise BadImageError(
                f"{self.path} cannot be decoded ({why}): remove it, or save it again", why
            ) from error


def check_size(name: str | Path, width: int, height: int, max_pixels: int) -> None:
    """Whether an image is large enough to crop, and no larger than is allowed.

    Args:
        name: what to call it.
        width: in pixels.
        height: in pixels.
        max_pixels: of the whole image.

    Raises:
        BadImageError: it is not.
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
    """Puts away PIL's own limit, which is twice as high as it says: `EncodedImage` has looked."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def crops_of(file: EncodedImage, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
    """Cuts boxes and resizes them, bilinear with antialiasing.

    Args:
        file: the image.
        groups: boxes that share a decode, group by group.
        size: side S of the crops in pixels.
        out: `uint8 [K, 3, S, S]` for the K boxes of all groups.

    Raises:
        BadImageError: the image cannot be decoded.
    """
    places, decoded = iter(out.numpy()), dict[int, Image.Image]()
    for boxes in groups:
        scale = file.scale(boxes, size)
        if scale not in decoded:
            decoded[scale] = file.rgb(scale)
        for box in boxes:
            with without_pils_limit():
                crop = cut_box(decoded[scale], box, scale, size, file.overhang(scale))
            next(places)[:] = np.asarray(crop).transpose(2, 0, 1)


def cut_box(
    image: Image.Image, box: Box, scale: int, size: int, overhang: tuple[int, int]
) -> Image.Image:
    """A box of an image that was decoded with one pixel for `scale` x `scale`, resized."""
    x0, y0 = box[1] + overhang[0], box[0] + overhang[1]
    top, left, bottom, right = (side / scale for side in (y0, x0, y0 + box[2], x0 + box[3]))
    # Whole pixels around the box, so that the filter sees nothing beyond its edges: as if the box
    # had been cut from the whole image, but for the pixels that it shares with its neighbourhood.
    x, y = math.floor(left), math.floor(top)
    crop = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    inner = (left - x, top - y, right - x, bottom - y)
    return crop.resize((size, size), Image.Resampling.BILINEAR, box=inner)
