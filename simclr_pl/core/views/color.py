"""Colour operations on a batch whose samples each have their own strength and order.

All work on `float [C, B, H, W]` in [0, 1]: each channel is one plane of contiguous memory. C = 3 is
RGB and C = 1 gray: they agree with `torchvision.transforms.v2.functional` sample by sample. Any
other number are bands, which have brightness and contrast each of its own, and no hue. Nothing here
depends on a sample's place in the batch, to the bit.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

ORDERS = tuple(itertools.permutations(range(4)))
"""The 24 orders of the four operations."""

LUMA = (0.2989, 0.587, 0.114)
"""Weights of R, G and B in grayscale (ITU-R BT.601, as torchvision and PIL have them)."""


class Jitter(NamedTuple):
    """Colour jitter for each sample.

    Attributes:
        on: `bool [B]`, whether the sample is jittered at all.
        order: `int64 [B, 4]`, which operation comes first, second, ...
        factor: `float [B, 4]`, or of bands `[B, 4, C]`: brightness, contrast and saturation factors
            (1 changes nothing), and hue shift in turns of the colour circle (0 changes nothing).
    """

    on: Tensor
    order: Tensor
    factor: Tensor


def luma(planes: Tensor | Sequence[Tensor]) -> Tensor:
    """Grayscale of RGB planes, a plane each; of one plane that plane itself; of bands the mean."""
    if len(planes) != 3:
        return planes[0] if len(planes) == 1 else functools.reduce(torch.add, planes) / len(planes)
    red, green, blue = planes
    gray: Tensor = red * LUMA[0]
    return gray.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def to_grayscale(planes: Tensor, on: Tensor) -> Tensor:
    """Replaces the channels of samples that are `on` (`bool [B]`) by their luma, in place."""
    if len(planes) == 1:
        return planes
    chosen = on.nonzero()[:, 0]
    gray = luma(planes.index_select(1, chosen))
    return planes.index_copy_(1, chosen, gray.expand(len(planes), -1, -1, -1))


def place_of_hue(how: Jitter) -> Tensor:
    """`int64 [B]`: at which of the four steps hue comes, 0 to 3; 4 for samples that are off."""
    return torch.where(how.on, (how.order == HUE).int().argmax(1), 4)


def jitter(planes: Tensor, how: Jitter) -> Tensor:
    """Brightness, contrast, saturation and hue in each sample's own order, in place.

    The first three are one formula: blending with black, with the mean luma, with the luma. Hue is
    the dear one: with samples sorted by its place, each step needs it on one slice of them alone.

    Args:
        planes: `float [C, B, H, W]` in [0, 1].
        how: of samples whose `place_of_hue` nowhere falls.
    """
    ends = torch.bincount(place_of_hue(how), minlength=5).cumsum(0).tolist()
    jittered, start = ends[3], 0
    if not jittered:
        return planes
    weights = shares(how, len(planes))[..., :jittered, None, None]
    for step, end in enumerate(ends[:4]):
        _blend(planes[:, :jittered], *weights[:, step])
        if len(planes) == 3 and end > start:
            shift_hue(planes[:, start:end], how.factor[start:end, HUE])
        start = end
    return planes


def shares(how: Jitter, channels: int) -> Tensor:
    """`float [3, 4, B]`: of the image, of its mean luma and of its luma, at each of four steps.

    Of bands `[3, 4, C, B]`. Where the operation is hue, or saturation of anything but RGB, the
    image's share is 1: nothing changes.

    Args:
        how: of B samples.
        channels: C.
    """
    order, factor = how.order.T, how.factor.movedim(0, -1)
    order = order if factor.dim() == 2 else order[:, None].expand(factor.shape)
    factor = factor.gather(0, order)
    idle = order == HUE if channels == 3 else order >= SATURATION
    own = torch.where(idle, 1.0, factor)
    rest = 1 - own
    return torch.stack(
        [own, torch.where(order == CONTRAST, rest, 0), torch.where(order == SATURATION, rest, 0)]
    )


def _blend(planes: Tensor, own: Tensor, to_mean: Tensor, to_gray: Tensor) -> None:
    """A weighted sum of image, mean luma and luma, clamped to [0, 1], in place.

    Each of several bands is blended with its own mean.
    """
    gray = luma(planes) if len(planes) in (1, 3) else planes
    # Two sums of one row each: a single sum over a whole image could be split over threads in
    # another way for a batch of one.
    mean = gray.mean(-1, keepdim=True).mean(-2, keepdim=True)
    planes.mul_(own).add_((gray * to_gray).add_(mean * to_mean)).clamp_(0, 1)


def shift_hue(planes: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of RGB images in place, keeping value and chroma (HSV).

    Piecewise-linear, without building HSV: with low and high the least and largest channel, chroma
    c = high - low and hue h in sixths of a turn, red is `low + c s(3)`, green `high - c s(2)`, blue
    `high - c s(4)`, where `s(m) = clamp(|h - m| - 1, 0, 1)`. The hue itself comes from the two
    channels that are not the lowest: `1 + (g - r) / c` where blue is lowest, `3 + (b - g) / c`
    where red is, `5 + (r - b) / c` where green is. Which one is lowest is a number, 0 or 1, made by
    `sign`: comparing and selecting cost ten times as much on a CPU.

    Args:
        planes: `float [3, B, H, W]` in [0, 1].
        turns: `[B]`, from -0.5 to 0.5.
    """
    red, green, blue = planes
    low, high = torch.minimum(red, green), torch.maximum(red, green)
    low, high = torch.minimum(low, blue, out=low), torch.maximum(high, blue, out=high)
    chroma = high - low
    lowest_red = (blue - low).sign_()  # so far: where blue is not
    lowest_blue = 1 - lowest_red
    lowest_green = (red - low).sign_().mul_(lowest_red)
    lowest_red.sub_(lowest_green)
    hue = (green - red).mul_(lowest_blue)
    hue.addcmul_(blue - green, lowest_red).addcmul_(red - blue, lowest_green)
    hue.div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny))  # grays have none: 0 / tiny
    hue.add_(lowest_red, alpha=2).add_(lowest_green, alpha=4)
    hue.add_((6 * turns + 7)[:, None, None]).div_(6).frac_().mul_(6)
    middle = hue.new_tensor([3, 2, 4])[:, None, None, None]
    torch.sub(hue, middle, out=planes).abs_().sub_(1).clamp_(0, 1).mul_(chroma)
    planes[0] += low
    torch.sub(high, planes[1:], out=planes[1:])
    return planes
