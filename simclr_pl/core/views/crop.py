"""Random resized crops: where to cut, and cutting, resizing and mirroring a whole batch at once.

Bilinear resampling is separable, and each output pixel is a weighted mean of a few input pixels:
two of each line, or a few more where a crop is made smaller, with the antialiasing that torchvision
and PIL apply. Which ones and how much of each is worked out for every sample; a mirrored crop reads
them in the other order.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from simclr_pl.core.speed.constants import constant

RATIO = (3 / 4, 4 / 3)
"""Bounds of a crop's width / height (the paper's appendix A)."""

ATTEMPTS = 10
"""Tries to find a box inside the image, as torchvision has it; then the centre."""

CLEAN_SHARE = 0.875
"""Share of a photograph's shorter side in its clean view: the usual 224 of 256 pixels."""

DRAWS = 2 * ATTEMPTS + 2
"""Uniform numbers a crop needs."""


def random_boxes(
    u: Tensor, height: Tensor | int, width: Tensor | int, scale: tuple[float, float]
) -> Tensor:
    """Boxes of random area and aspect ratio, as torchvision's `RandomResizedCrop` has them.

    Args:
        u: `[B, DRAWS]`, uniform numbers.
        height: of the images in pixels, one number or `[B]`.
        width: likewise.
        scale: bounds of the area, as a share of the image's.

    Returns:
        `int64 [B, 4]`: top, left, height, width in pixels.
    """
    # In float64 a last-bit difference between vectorised and scalar exp moves no rounded pixel.
    u = u.double()
    height, width = _each(height, u), _each(width, u)
    low, high = constant(RATIO, u.dtype, u.device).log()
    tries = u[:, : 2 * ATTEMPTS].unflatten(1, (ATTEMPTS, 2))
    smallest, largest = constant(tuple(scale), u.dtype, u.device)
    area = (height * width)[:, None] * torch.lerp(smallest, largest, tries[..., 0])
    ratio = torch.lerp(low, high, tries[..., 1]).exp()
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (h >= 1) & (w >= 1) & (h <= height[:, None]) & (w <= width[:, None])
    first = fits.to(torch.int8).argmax(1, keepdim=True)  # 0 where none fits
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    # Where none fits: the largest centred box of an allowed ratio.
    none = ~fits.any(1)
    h = torch.where(none, torch.minimum(height, (width / RATIO[0]).round()), h)
    w = torch.where(none, torch.minimum(width, (height * RATIO[1]).round()), w)
    place = torch.where(none[:, None], 0.5, u[:, -2:])
    slack = torch.stack([height - h, width - w], 1)
    # A random place is a whole number from 0 to the slack; the centre is half of it.
    corner = torch.where(none[:, None], (slack / 2).floor(), (place * (slack + 1)).floor())
    return torch.cat([corner, h[:, None], w[:, None]], 1).long()


def _each(pixels: Tensor | int, like: Tensor) -> Tensor:
    if isinstance(pixels, Tensor):
        return pixels.to(like).expand(len(like))
    return like.new_full((len(like),), pixels)


def centre_boxes(height: Tensor | int, width: Tensor | int, share: float = 1.0) -> Tensor:
    """Centred squares whose side is `share` of the shorter image side: `int64 [B, 4]`."""
    height, width = torch.as_tensor(height).reshape(-1), torch.as_tensor(width).reshape(-1)
    side = (torch.minimum(height, width) * share).round().long().clamp(min=1)
    return torch.stack([(height - side) // 2, (width - side) // 2, side, side], 1)


def taps(
    start: Tensor, length: Tensor, flip: Tensor | None, size: int, out: int, longest: int
) -> tuple[Tensor, Tensor]:
    """Which pixels of a line each output pixel is a weighted mean of, and the weights.

    Bilinear with antialiasing: a triangle as wide as two input pixels, or two output pixels where
    those are larger, cut at the box's edges and normalised (PIL's and torchvision's definition).

    Args:
        start: `[B]`, first pixel of the box.
        length: `[B]`, its length in pixels.
        flip: `bool [B]`, mirror the output, or `None`.
        size: pixels of the whole line.
        out: pixels wanted.
        longest: no length is larger; what it adds to K weighs nothing, and changes no bit.

    Returns:
        `int64 [K, B, out]`, pixels of the line; `float32 [K, B, out]`, weights, whose sum over K
        is 1. K is 2 unless a box gets shorter.
    """
    start, length = start.float()[:, None], length.float()[:, None]
    step = length / out
    reach = step.clamp(min=1)
    target = torch.arange(out, device=start.device, dtype=torch.float32) + 0.5
    if flip is not None:
        target = torch.where(flip[:, None], out - target, target)
    centre = start + target * step - 0.5  # pixel i lies at i
    most = math.ceil(2 * max(1, longest / out))
    place = torch.arange(1, most + 1, device=start.device, dtype=torch.float32)
    pixel = (centre - reach).floor_() + place[:, None, None]
    weights = (1 - (pixel - centre).abs_() / reach).clamp_(min=0)
    weights *= (pixel >= start) & (pixel < start + length)
    # One after the other: `sum` goes in an order that depends on K, and K on the batch.
    weights /= functools.reduce(torch.add, weights)
    return pixel.clamp_(0, size - 1).long(), weights


def resampled(
    images: Tensor,
    which: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    columns: Tensor,
    column_weights: Tensor,
) -> Tensor:
    """Weighted means of pixels, first along columns, then along lines: bilinear ones are separable.

    No product with a matrix, which would be almost all zeros, and nothing that depends on a
    sample's place in the batch.

    Args:
        images: `uint8 [N, C, H, W]`, or `float32` in [0, 1].
        which: `int64 [B]`, the images that are wanted.
        rows: `int64 [K, B, S]`, from `taps`.
        row_weights: `float32 [K, B, S]`, from `taps`.
        columns: likewise, with a K of their own.
        column_weights: likewise.

    Returns:
        `float32 [C, B, S, S]` in [0, 1]: planes of one colour together.
    """
    channels, height, width = images.shape[1:]
    shape = channels, *rows.shape[1:]
    colour = torch.arange(channels, device=images.device)[:, None]
    first = ((which * channels + colour) * height)[..., None]
    lines = images.reshape(-1, width)
    short = _sum(
        lines.index_select(0, (first + row).view(-1)).float().view(*shape, width)
        .mul_(weight[..., None])
        for row, weight in zip(rows, row_weights, strict=True)
    )  # fmt: skip
    square = *shape, shape[-1]
    crops = _sum(
        short.gather(3, column[:, None].expand(square)).mul_(weight[:, None])
        for column, weight in zip(columns, column_weights, strict=True)
    )
    return crops if images.is_floating_point() else crops.div_(255)


def to_unit(images: Tensor) -> Tensor:
    """Pixels on a scale of 0 to 1, in memory of their own: `uint8` 0 to 255, or `float32`."""
    return images.clone() if images.is_floating_point() else images.float().div_(255)


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total.add_(part)
    return total
