"""What may be asked of views, and what is random about one."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simclr_pl.core.errors import check
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
        own: `float [B, K]`, numbers that a subclass of the views has drawn for operations of its
            own; K is 0 in the paper's views.
    """

    crop: Tensor
    flip: Tensor
    jitter: Jitter
    gray: Tensor
    blur: Tensor
    sigma: Tensor
    own: Tensor

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


def check_settings(views: Any) -> None:
    """Looks at the arguments of `SimCLRViews`, which it has as attributes.

    Raises:
        UserError: a value out of its range.
    """
    size, scale, jitter, mean, std = (
        getattr(views, name) for name in ("image_size", "scale", "jitter", "mean", "std")
    )
    shares = "two shares of the image's area, smaller first, above 0 and at most 1"
    divisors = "numbers above 0, by which pixels are divided (left out, it is counted)"
    strength = "the paper's strength s, from 0 to 2.5 (0.5 for CIFAR-10)"
    check(views.count >= 2, "data.views.count", views.count, "at least 2 views of each image")
    check(size >= MIN_SIDE, "data.image_size", size, f"at least {MIN_SIDE} pixels")
    check(0 < scale[0] <= scale[1] <= 1, "data.scale", [*scale], shares)
    for name in ("flip", "grayscale", "blur"):
        chance = getattr(views, name)
        check(0 <= chance <= 1, f"data.{name}", chance, "a probability, from 0 to 1")
    check(0 <= jitter <= 2.5, "data.jitter", jitter, strength)
    check(all(map(math.isfinite, mean)), "data.mean", [*mean], "finite numbers, one a channel")
    check(all(0 < s < math.inf for s in std), "data.std", [*std], divisors)
    check(len(std) == len(mean), "data.std", [*std], f"as long as data.mean {[*mean]}")
