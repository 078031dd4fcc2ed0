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
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from simclr_pl.data.formats import decoders, kind_of
from simclr_pl.errors import UserError

MIN_SIDE = 4
"""Sides below this, in pixels, leave a crop nothing to choose."""

SCALES = (8, 4, 2, 1)
"""Pixels of a JPEG's line that may become one by decoding fewer frequencies."""

Box = Sequence[int]
"""Top, left, height, width in pixels of the whole image."""


class EncodedImage:
    """A file's bytes, and what its header says.

    Args:
        path: the file.

    Raises:
        UserError: no readable image, or one that is too small.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._named():
            self._bytes = path.read_bytes()
            image = self._opened()
        self.width, self.height = image.size
        if min(image.size) < MIN_SIDE:
            raise UserError(
                f"{path} is {self.width} x {self.height} pixels, too small to crop: remove it "
                f"(at least {MIN_SIDE} x {MIN_SIDE} are needed)"
            )
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
        """The image, with one pixel for `scale` x `scale`.

        Raises:
            UserError: it cannot be decoded.
        """
        with self._named():
            image, self._header = self._header or self._opened(), None
            if scale > 1:
                image.draft(None, (self.width // scale, self.height // scale))
            image = _eight_bits(image)
            image.load()
            if image.size != tuple(-(-side // scale) for side in (self.width, self.height)):
                raise ValueError(f"its header says {self.width} x {self.height} pixels")
            # A conversion of what is RGB already would copy it.
            return image if image.mode == "RGB" else image.convert("RGB")

    def _opened(self) -> Image.Image:
        return Image.open(io.BytesIO(self._bytes), formats=decoders())

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Whatever is wrong with the file is said with its name."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PIL, about odd metadata in good images
                yield
        except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            why = str(error)
            if isinstance(error, UnidentifiedImageError):  # PIL names the object it looked at
                why = kind_of(self._bytes)
            raise UserError(
                f"{self.path} cannot be decoded ({why}): remove it, or save it again"
            ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray with its shades kept: PIL's own conversion makes all above 255 white.

    Raises:
        ValueError: numbers of which nobody knows what is black and what is white.
    """
    # (Of a PGM, and of a PNG in older versions, PIL has 16 bits in numbers of 32.)
    wide = image.mode == "I" and image.format in ("PPM", "PNG")
    if image.mode.startswith("I;16") or wide:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit numbers without a range; 8 and 16 bits have one")
    return image


def crops_of(file: EncodedImage, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
    """Cuts boxes and resizes them, bilinear with antialiasing.

    Args:
        file: the image.
        groups: boxes that share a decode, group by group.
        size: side S of the crops in pixels.
        out: `uint8 [K, 3, S, S]` for the K boxes of all groups.

    Raises:
        UserError: the image cannot be decoded.
    """
    places, decoded = iter(out.numpy()), dict[int, Image.Image]()
    for boxes in groups:
        scale = file.scale(boxes, size)
        if scale not in decoded:
            decoded[scale] = file.rgb(scale)
        for box in boxes:
            crop = _cut(decoded[scale], box, scale, size)
            next(places)[:] = np.asarray(crop).transpose(2, 0, 1)


def _cut(image: Image.Image, box: Box, scale: int, size: int) -> Image.Image:
    top, left, bottom, right = (
        side / scale for side in (box[0], box[1], box[0] + box[2], box[1] + box[3])
    )
    # Whole pixels around the box, so that the filter sees nothing beyond its edges: as if the box
    # had been cut from the whole image, but for the pixels that it shares with its neighbourhood.
    x, y = math.floor(left), math.floor(top)
    crop = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    inner = (left - x, top - y, right - x, bottom - y)
    return crop.resize((size, size), Image.Resampling.BILINEAR, box=inner)
