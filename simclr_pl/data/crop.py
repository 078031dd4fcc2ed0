"""Random resized crops: where to cut, and cutting a whole batch with a matrix product.

Bilinear resampling is linear and separable: each output row is a weighted mean of a few input rows,
and so for columns. Written as a matrix for each sample, `rows @ image @ columns.T` crops, resizes
and flips in one go, with the antialiasing that torchvision and PIL apply when a crop is made
smaller.
"""

import torch
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
"""Bounds of a crop's width / height (the paper's appendix A)."""

ATTEMPTS = 10
"""Tries to find a box inside the image, as torchvision has it; then the centre."""

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
    height = torch.as_tensor(height, device=u.device).expand(u.shape[0]).double()
    width = torch.as_tensor(width, device=u.device).expand(u.shape[0]).double()
    low, high = torch.tensor(RATIO, dtype=torch.float64, device=u.device).log()
    tries = u[:, : 2 * ATTEMPTS].unflatten(1, (ATTEMPTS, 2))
    area = (height * width)[:, None] * torch.lerp(
        u.new_tensor(scale[0]), u.new_tensor(scale[1]), tries[..., 0]
    )
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


def centre_boxes(height: Tensor | int, width: Tensor | int, share: float = 1.0) -> Tensor:
    """Centred squares whose side is `share` of the shorter image side: `int64 [B, 4]`."""
    height, width = torch.as_tensor(height).reshape(-1), torch.as_tensor(width).reshape(-1)
    side = (torch.minimum(height, width) * share).round().long().clamp(min=1)
    return torch.stack([(height - side) // 2, (width - side) // 2, side, side], 1)


def resampling_matrix(
    start: Tensor, length: Tensor, flip: Tensor | None, size: int, out: int
) -> Tensor:
    """Weights that resample pixels `start ... start + length` of a line of `size` to `out` pixels.

    Bilinear with antialiasing: a triangle as wide as two input pixels, or two output pixels where
    those are larger, cut at the box's edges and normalised (PIL's and torchvision's definition).

    Args:
        start: `[B]`, first pixel of the box.
        length: `[B]`, its length in pixels.
        flip: `bool [B]`, mirror the output, or `None`.
        size: pixels of the whole line.
        out: pixels wanted.

    Returns:
        `float32 [B, out, size]`; each row sums to 1.
    """
    start, length = start.float()[:, None], length.float()[:, None]
    step = length / out
    target = torch.arange(out, device=start.device, dtype=torch.float32) + 0.5
    if flip is not None:
        target = torch.where(flip[:, None], out - target, target)
    centre = start + target * step
    pixel = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    distance = (pixel - centre[..., None]).abs_() / step.clamp(min=1)[..., None]
    weights = (1 - distance).clamp_(min=0)
    inside = (pixel > start) & (pixel < start + length)
    weights *= inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def apply_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows @ image @ columns.T` for each sample and channel.

    Args:
        images: `float [B, C, H, W]`.
        rows: `float [B, S, H]`.
        columns: `float [B, S, W]`.

    Returns:
        `float [B, C, S, S]`.
    """
    batch, channels, height, width = images.shape
    wide = torch.bmm(images.reshape(batch, channels * height, width), columns.transpose(1, 2))
    return torch.matmul(rows[:, None], wide.view(batch, channels, height, -1))
