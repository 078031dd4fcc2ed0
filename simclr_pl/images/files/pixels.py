"""Pixels of an opened file as RGB: bits, bands, pages, transparency, orientation."""

import re
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

_BITS, _PHOTOMETRIC, _BANDS, _EXTRA, _SUBFILE = 258, 262, 277, 338, 254
"""Numbers of TIFF's tags."""

_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}
"""Colours by a TIFF's photometric interpretation: RGB, CMYK, YCbCr, CIELab; other ones have one."""

_ALPHA = frozenset({1, 2, 999})
"""Numbers by which a TIFF says that an extra band is an alpha channel (999: Corel's)."""


class Turn(NamedTuple):
    """The operation that brings a stored image upright.

    Attributes:
        how: Pillow's name of the operation, or `None`.
        swaps: whether rows become columns.
        mirrors_x: whether the upright image's left edge was the end of a row (or column).
        mirrors_y: whether the upright image's top edge was.
    """

    how: Image.Transpose | None = None
    swaps: bool = False
    mirrors_x: bool = False
    mirrors_y: bool = False


UPRIGHT = Turn()

_TURNS = {
    2: Turn(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: Turn(Image.Transpose.ROTATE_180, False, True, True),
    4: Turn(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: Turn(Image.Transpose.TRANSPOSE, True, False, False),
    6: Turn(Image.Transpose.ROTATE_270, True, True, False),
    7: Turn(Image.Transpose.TRANSVERSE, True, True, True),
    8: Turn(Image.Transpose.ROTATE_90, True, False, True),
}
"""Turns by EXIF's orientation."""

_WITH_ORIENTATION = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
"""Keys of Pillow's `info` under which an orientation may be."""


def turn_of(image: ImageFile) -> Turn:
    """The turn that EXIF (or XMP) asks for; quick for files that have neither.

    Pillow turns TIFFs by itself, and gives their size after the turn.
    """
    if isinstance(image, TiffImageFile) or not _WITH_ORIENTATION & image.info.keys():
        return UPRIGHT
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), UPRIGHT)
    except Exception:  # whatever Pillow raises of broken EXIF: the picture is whole
        return UPRIGHT


def check_whole(image: ImageFile) -> None:
    """Refuses a TIFF of which Pillow would drop bands or pages without a word.

    Raises:
        ValueError: more bands than colours and alpha, or several pages of full size.
    """
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    colours = _COLOURS.get(tags.get(_PHOTOMETRIC, 1), 1)
    bands = int(tags.get(_BANDS, colours))
    alpha = len(_ALPHA.intersection(tags.get(_EXTRA, ())))
    if bands > colours + alpha:
        raise ValueError(
            f"it has {bands} bands, of which only {colours} say what they are: save the bands that "
            "you want as gray or RGB"
        )
    pages = _pages(image)
    if pages > 1:
        raise ValueError(f"it has {pages} pages: save each page that you want as a file")


def _pages(image: TiffImageFile) -> int:
    """How many pages are pictures of their own; smaller copies and masks are not counted."""
    count = int(getattr(image, "n_frames", 1))
    if count == 1:
        return 1
    pages = 0
    for frame in range(count):
        image.seek(frame)
        pages += not int(image.tag_v2.get(_SUBFILE, 0)) & 0b101
    image.seek(0)
    return pages


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as RGB, on white where it is transparent.

    Args:
        image: loaded, in the file's own mode.

    Raises:
        ValueError: numbers without a known black and white.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image  # a conversion would copy it
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray with its shades kept: PIL's own conversion makes all above 255 white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    if not _is_sixteen(image):
        raise ValueError("32-bit numbers without a range; 8 and 16 bits have one")
    levels = np.asarray(image) >> (_bits(image) - 8)
    if _tags(image).get(_PHOTOMETRIC, 1) == 0:  # zero is white: PIL leaves 16-bit TIFFs so
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8))


def _is_sixteen(image: Image.Image) -> bool:
    """Whether an image of one band has 16 bits (or fewer, in numbers of 16).

    (PIL has those of a PGM, and in older versions of a PNG, in numbers of 32.)
    """
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def _bits(image: Image.Image) -> int:
    """Bits of 16-bit gray: 16, unless a TIFF says that it has fewer."""
    return int(_tags(image).get(_BITS, (16,))[0])


def _tags(image: Image.Image) -> Any:
    """A TIFF's tags; none of another file."""
    return getattr(image, "tag_v2", {})


class Range(NamedTuple):
    """Least and greatest number of a 16-bit image.

    Attributes:
        low: the least, from 0 to 65535.
        high: the greatest.
    """

    low: int
    high: int


def sixteen_bit_range(image: ImageFile) -> Range | None:
    """The range that a file of 16 bits a band uses; `None` for other files, which aren't decoded.

    PIL keeps the upper 8 bits of colours only, so that their range is known to 256 numbers.
    """
    if not has_sixteen_bits(image):
        return None
    if _is_sixteen(image):
        numbers = np.asarray(image)
        return Range(int(numbers.min()), int(numbers.max()))
    upper = np.asarray(image)
    if image.mode in ("RGBA", "LA", "RGBa", "La"):
        upper = upper[..., :-1]
    return Range(256 * int(upper.min()), 256 * int(upper.max()) + 255)


def has_sixteen_bits(image: ImageFile) -> bool:
    """Whether a file that isn't decoded yet has 16 bits a band."""
    if _is_sixteen(image):
        return _bits(image) == 16
    return re.search(r";16[A-Z]*$", _rawmode(image)) is not None


def _rawmode(image: ImageFile) -> str:
    """PIL's name for how numbers are stored in the file."""
    args: Any = image.tile[0][3] if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""
