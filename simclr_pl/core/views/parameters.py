"""What may be asked of views, and what is random about one."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_pl.core.errors import UserError
from simclr_pl.core.views.color import Jitter

MIN_SIDE = 4
"""The smallest side, in pixels, of an image and of a view."""


class ViewParameters(NamedTuple):
    """What is random about one view of each image.

    Attributes:
        crop: `[B, DRAWS]`, uniform numbers from which `random_boxes` cuts.
        flip: `bool [B]`, mirror left and right.
        jitter: brightness, contrast, saturation and hue.
        gray: `bool [B]`, drop colour.
        blur: `bool [B]`, blur.
        sigma: `float [B]`, the blur's standard deviation in pixels.
    """

    crop: Tensor
    flip: Tensor
    jitter: Jitter
    gray: Tensor
    blur: Tensor
    sigma: Tensor

    def select(self, part: Tensor) -> "ViewParameters":
        """Those of the samples `part`, `int64`."""
        return self._each(lambda values: values[part])

    def to(self, device: torch.device) -> "ViewParameters":
        """The same on another device."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ViewParameters":
        crop, flip, jitter, *rest = self
        return ViewParameters(
            change(crop), change(flip), Jitter(*map(change, jitter)), *map(change, rest)
        )


def check_settings(
    image_size: int,
    scale: tuple[float, float],
    flip: float,
    jitter: float,
    grayscale: float,
    blur: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    count: int,
) -> None:
    """Looks at the arguments of `SimCLRViews`.

    Raises:
        UserError: a value out of its range.
    """
    if count < 2:
        raise UserError(f"data.views.count is {count}, but each image has at least 2 views")
    if image_size < MIN_SIDE:
        raise UserError(
            f"data.image_size is {image_size}, but views need at least {MIN_SIDE} pixels"
        )
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"data.scale is {list(scale)}, but must be two shares of the image's area, smaller "
            "first, above 0 and at most 1"
        )
    for name, chance in {"flip": flip, "grayscale": grayscale, "blur": blur}.items():
        if not 0 <= chance <= 1:
            raise UserError(f"data.{name} is {chance}, but is a probability, from 0 to 1")
    if not 0 <= jitter <= 2.5:
        raise UserError(
            f"data.jitter is {jitter}, but is the paper's strength s, from 0 to 2.5 "
            "(0.5 for CIFAR-10)"
        )
    if len(mean) != len(std) or not all(map(math.isfinite, mean)):
        raise UserError(
            f"data.mean {list(mean)} and data.std {list(std)} must have one number a channel"
        )
    if not all(0 < s < math.inf for s in std):
        raise UserError(
            f"data.std is {list(std)}, but pixels are divided by it: give numbers above 0, or "
            "leave it out, and it is counted"
        )
