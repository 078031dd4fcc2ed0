"""`data.range`: which numbers of an image are 0 and 1, given or found in a sample."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from simclr_pl.core.data.sources import Pages, Range, Source
from simclr_pl.core.errors import UserError
from simclr_pl.images.numbers.sources import Numbers, numbers_of
from simclr_pl.images.readers.reader import say_once
from simclr_pl.images.workers.images import one_by_one

SAMPLE = 64
"""Images of train that are looked at for the range, evenly spread."""

PERCENTILES = (0.1, 99.9)
"""Of the sample's numbers: `auto` takes these two as 0 and 1."""

MOST_CLIPPED = 0.01
"""A range that clips more of a sample's numbers says so."""

PIXELS = 2**18
"""Numbers of an image that are looked at, evenly spread."""


def in_range(
    splits: Mapping[str, Source],
    given: Range | Literal["auto"] | None,
    pages: Pages | None,
    name: str,
) -> dict[str, Any]:
    """The splits with their numbers put on a scale from 0 to 1.

    Args:
        splits: by name, `train` among them.
        given: the option `data.range`; `None` leaves 8-bit images as they are.
        pages: the option `data.pages`.
        name: of the data set, for lines and errors.

    Raises:
        UserError: images of more than 8 bits without a range; a range of no width, or of images
            whose pixels are read in another way.
    """
    if given is None:
        _check_eight_bits(splits, pages, name)
        # Of arrays on disk, 8 bits have the range that 8 bits have.
        eight = {k: s.within((0.0, 255.0)) for k, s in splits.items() if isinstance(s, Numbers)}
        return {**splits, **eight}
    numbers = {
        split: _numbers(source, pages, f"{name}'s {split}") for split, source in splits.items()
    }
    train = numbers["train"]
    seen = _sampled(train)
    if given == "auto":
        window, (least, most) = train.window, PERCENTILES
        low, high = window or _percentiles(seen, name)
        of_sample = f"percentiles {least:g} and {most:g} of {min(SAMPLE, len(train))} images"
        origin = "the window of its files" if window else of_sample
        say_once(f"{name}: range [{low:g},{high:g}], {origin}; the checkpoint keeps it")
    else:
        low, high = map(float, given)
        if not -np.inf < low < high < np.inf:
            raise UserError(f"data.range is {[*given]}, but must be two numbers, smaller one first")
    clipped = float(((seen < low) | (seen > high)).mean()) if len(seen) else 0.0
    if clipped > MOST_CLIPPED:
        say_once(
            f"{name}: the range [{low:g},{high:g}] clips {clipped:.1%} of the numbers in a sample, "
            f"which go from {seen.min():g} to {seen.max():g}"
        )
    return {split: source.within((low, high)) for split, source in numbers.items()}


def _check_eight_bits(splits: Mapping[str, Source], pages: Pages | None, name: str) -> None:
    for source in splits.values():
        if isinstance(source, Numbers) and source.dtype != torch.uint8:
            kind = f"{source.channels} x {str(source.dtype).removeprefix('torch.')}"
            raise UserError(
                f"{name} has images of numbers ({kind} a pixel), and nothing says which are black "
                "and white: give --data.range [LOW,HIGH], as in [0,4095], or auto "
                "(percentiles of a sample, which the checkpoint keeps)"
            )
    if pages is not None:
        raise UserError(
            f"data.pages is {pages}, but without a range images are read as RGB, one a file: give "
            "--data.range too, as in [0,255]"
        )


def _numbers(source: Source, pages: Pages | None, what: str) -> Numbers:
    found = numbers_of(source, pages)
    if found is None:
        raise UserError(
            f"data.range: {what} split is {source.stored}, and its 8 bits are read as they are: "
            "leave that option out"
        )
    return found


def _sampled(source: Numbers) -> np.ndarray[Any, Any]:
    """Numbers of a sample of images, in one row; images that cannot be read are left out."""
    places = torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long().unique()
    parts = []
    for place in one_by_one(source, places.tolist()):
        try:
            flat = source.numbers(place).flatten()
        except UserError:  # the training says so, by its own rule
            continue
        parts.append(flat[:: -(-len(flat) // PIXELS)].double().numpy())
    return np.concatenate(parts) if parts else np.empty(0)


def _percentiles(numbers: np.ndarray[Any, Any], name: str) -> Range:
    if not len(numbers):
        raise UserError(
            f"data.range: no image of {name}'s sample can be read, so that there are no "
            "percentiles: give two numbers"
        )
    low, high = np.percentile(numbers, PERCENTILES)
    if not low < high:
        low, high = numbers.min(), numbers.max()
    if not low < high:
        raise UserError(
            f"data.range: all numbers of {name}'s sample are {low:g}: give two numbers, as [0,255]"
        )
    return float(low), float(high)
