"""A look at some of a set's files before anything is trained: what each alone cannot say."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.decode import without_pils_limit
from simclr_pl.images.files.formats import decoders
from simclr_pl.images.files.pixels import Range, sixteen_bit_range

SAMPLE = 48
"""Files of a split that are looked at, evenly spread. Those of 16 bits are decoded."""

LEAST_RANGE = 2**14
"""Numbers between the darkest and the brightest of 16 bits that leave 64 of 256 shades."""

_SIXTEEN = 2**16 - 1


class Seen(NamedTuple):
    """What some files are.

    Attributes:
        files: how many were looked at and opened.
        moving: how many have several frames.
        ranges: of those of 16 bits.
    """

    files: int
    moving: int
    ranges: list[Range]


def look_at(paths: Sequence[Path]) -> Seen:
    """What a sample of files has. Files that cannot be opened are left to who decodes them."""
    places = torch.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).long().unique()
    files, moving, ranges = 0, 0, list[Range]()
    for place in places.tolist():
        try:
            found, moves = _look(paths[place])
        except Exception:
            continue
        files += 1
        moving += moves
        ranges += [] if found is None else [found]
    return Seen(files, moving, ranges)


def _look(path: Path) -> tuple[Range | None, bool]:
    with warnings.catch_warnings(), without_pils_limit():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=decoders()) as image:
            moves = image.format not in ("JPEG", "MPO", "TIFF") and bool(
                getattr(image, "is_animated", False)
            )
            small = image.width * image.height <= MAX_PIXELS
            return (sixteen_bit_range(image) if small else None), moves


def check_ranges(folder: Path, ranges: Sequence[Range]) -> None:
    """Refuses files of 16 bits whose numbers stay in a corner of what 16 bits can say.

    Only the upper 8 bits are used: the numbers of a camera of 12 bits would be 16 shades.

    Args:
        folder: of the files.
        ranges: of a sample of them.

    Raises:
        UserError: all of them together use a quarter of the range, or less.
    """
    if not ranges:
        return
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    if high - low < LEAST_RANGE:
        shades = (high >> 8) - (low >> 8) + 1
        raise UserError(
            f"{folder} has images of 16 bits that use the range {low} to {high} of {_SIXTEEN} "
            f"({len(ranges)} files were looked at), which would be {shades} of 256 shades: stretch "
            "them to the whole range, or save them with 8 bits"
        )
