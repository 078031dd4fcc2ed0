"""Colour operations on a batch whose samples each have their own strength and order.

All work on `float [B, C, H, W]` in [0, 1] with C = 3 (RGB) or 1, and agree with
`torchvision.transforms.v2.functional` sample by sample. Nothing here depends on a sample's place
in the batch, to the bit.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

ORDERS = torch.tensor(list(itertools.permutations(range(4))))
"""The 24 orders of the four operations."""

LUMA = (0.2989, 0.587, 0.114)
"""Weights of R, G and B in grayscale (ITU-R BT.601, as torchvision and PIL have them)."""


class Jitter(NamedTuple):
    """Colour jitter for each sample.

    Attributes:
        on: `bool [B]`, whether the sample is jittered at all.
        order: `int64 [B, 4]`, which operation comes first, second, ...
        factor: `float [B, 4]`: brightness, contrast and saturation factors (1 changes nothing), and
            hue shift in turns of the colour circle (0 changes nothing).
    """

    on: Tensor
    order: Tensor
    factor: Tensor


def luma(images: Tensor) -> Tensor:
    """Grayscale `[B, 1, H, W]` of RGB images; a single channel is returned as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).unsqueeze(1)


def to_grayscale(images: Tensor, on: Tensor) -> Tensor:
    """Replaces the channels of samples that are `on` (`bool [B]`) by their luma, in place."""
    if images.shape[1] == 1:
        return images
    chosen = on.nonzero()[:, 0]
    if chosen.numel():
        images[chosen] = luma(images[chosen]).expand(-1, 3, -1, -1)
    return images


def jitter(images: Tensor, how: Jitter) -> Tensor:
    """Brightness, contrast, saturation and hue in each sample's own order, in place.

    The first three are one formula: blending with black, with the mean luma, with the luma. Hue is
    the dear one, so samples are sorted by the place of hue in their order: at each of the four
    steps it is then needed on one contiguous slice, once a sample.
    """
    chosen = how.on.nonzero()[:, 0]
    if not chosen.numel():
        return images
    hue_place = (how.order[chosen] == HUE).int().argmax(1)
    by_place = hue_place.argsort(stable=True)
    chosen = chosen[by_place]
    ends = torch.bincount(hue_place, minlength=4).cumsum(0).tolist()
    work, order, factor = images[chosen], how.order[chosen], how.factor[chosen]
    start = 0
    for step, end in enumerate(ends):
        now = slice(start, end)
        for others in (slice(0, start), slice(end, None)):
            _blend(work[others], order[others, step], factor[others])
        if images.shape[1] == 3 and end > start:
            work[now] = shift_hue(work[now], factor[now, HUE])
        start = end
    images[chosen] = work
    return images


def _blend(images: Tensor, operation: Tensor, factors: Tensor) -> None:
    """`f x + (1 - f) target`, clamped to [0, 1], in place; the target depends on the operation."""
    if not images.numel():
        return
    gray = luma(images)
    # Two sums of one row each: a single sum over a whole image could be split over threads in
    # another way for a batch of one.
    mean = gray.mean(-1, keepdim=True).mean(-2, keepdim=True)
    factor = factors.gather(1, operation[:, None])
    if images.shape[1] == 1:  # no colour to saturate
        factor = torch.where(operation[:, None] == SATURATION, 1.0, factor)
    rest = 1 - factor
    to_mean = torch.where(operation[:, None] == CONTRAST, rest, 0.0)
    to_gray = torch.where(operation[:, None] == SATURATION, rest, 0.0)
    target = gray * to_gray[..., None, None] + mean * to_mean[..., None, None]
    images.mul_(factor[..., None, None]).add_(target).clamp_(0, 1)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of RGB images, keeping value and chroma (HSV).

    Without building HSV: with value v = max, chroma c = max - min and hue h in sixths of a turn,
    channel n of a colour is `v - c clamp(min(k, 4 - k), 0, 1)` with `k = (n + h) mod 6`, n = 5, 3,
    1 for R, G, B (Smith 1978, in the closed form of the HSV article's "alternative").

    Args:
        images: `float [B, 3, H, W]` in [0, 1].
        turns: `[B]`, from -0.5 to 0.5.

    Returns:
        `float [B, 3, H, W]`.
    """
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    scale = 1 / torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sixths += (turns * 6 + 6)[:, None, None]  # now between 2 and 14
    shifted = torch.empty_like(images)
    for channel, n in enumerate((5, 3, 1)):
        k = (sixths + n).remainder_(6)
        away = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(value, away.mul_(chroma), out=shifted[:, channel])
    return shifted
