"""A look at a sample of a set's files before training, for what no single file can say."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image

from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.decode import without_pils_limit
from simclr_pl.images.files.formats import decoders
from simclr_pl.images.files.pixels import Range, sixteen_bit_range

SAMPLE = 48
"""Files of a split that are looked at, evenly spread. Files of 16 bits are decoded."""

LEAST_RANGE = 2**14
"""Least range of 16-bit numbers, from the darkest to the brightest: 64 of 256 shades."""

_SIXTEEN = 2**16 - 1


def look_at(folder: Path, splits: Iterable[Sequence[Path]]) -> str:
    """Looks at a sample of each split's files: 16 bits of which few are used, and animations.

    Files that cannot be opened are left to the code that decodes them.

    Args:
        folder: of the files, for the error.
        splits: each split's files.

    Returns:
        How many of the files are animations, as the end of a sentence; empty where none is.

    Raises:
        UserError: all files of 16 bits together use a quarter of the range, or less.
    """
    files, moving, deep = 0, 0, dict[Path, Range]()
    for paths in splits:
        places = torch.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).long().unique()
        for place in places.tolist():
            with suppress(Exception):
                found, moves = _look(paths[place])
                files, moving = files + 1, moving + moves
                deep |= {} if found is None else {paths[place]: found}
    remedy = "give --data.range auto, which reads all of their bits"
    if 0 < len(deep) < files:  # strangers among images of 8 bits
        remedy = f"remove them (the first one is {next(iter(deep))}), or give --data.range auto"
    check_ranges(folder, [*deep.values()], remedy)
    said = f"; {moving} of {files} files looked at are animations, of which the first frame is used"
    return said if moving else ""


def _look(path: Path) -> tuple[Range | None, bool]:
    """The range of a file of 16 bits, and whether the file is an animation."""
    with warnings.catch_warnings(), without_pils_limit():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=decoders()) as image:
            moves = image.format not in ("JPEG", "MPO", "TIFF") and bool(
                getattr(image, "is_animated", False)
            )
            small = image.width * image.height <= MAX_PIXELS
            return (sixteen_bit_range(image) if small else None), moves


def check_ranges(what: str | Path, ranges: list[Range], remedy: str) -> None:
    """Refuses images of 16 bits whose numbers stay in a corner of what 16 bits can say.

    Only the upper 8 bits are used: the numbers of a camera of 12 bits would be 16 shades.

    Args:
        what: has the images, for the error.
        ranges: of a sample.
        remedy: what the error advises first.

    Raises:
        UserError: all images of the sample together use a quarter of the range, or less.
    """
    if not ranges:
        return
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    if high - low < LEAST_RANGE:
        shades = (high >> 8) - (low >> 8) + 1
        raise UserError(
            f"{what} has images of 16 bits that use the range {low} to {high} of {_SIXTEEN} "
            f"({len(ranges)} files were looked at), which would be {shades} of 256 shades: "
            f"{remedy}, or stretch them to the whole range"
        )
