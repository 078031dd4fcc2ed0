"""Gaussian blur on a batch whose samples each have their own strength."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 4.5
"""Standard deviations at which a kernel ends at the latest: beyond lie 7e-6 of it."""


def blur_radius(size: int) -> int:
    """Radius in pixels of the blur's kernel: a tenth of the image wide (the paper's appendix A)."""
    return max(1, size // 10 // 2)


def blurred(planes: Tensor, sigma: Tensor) -> Tensor:
    """Blurs each sample, mirrored at the edges: lines first, then columns.

    A weighted sum of shifted images. Nothing in it depends on a sample's place in the batch.

    Args:
        planes: `float [C, B, S, S]`.
        sigma: `[B]`, standard deviations in pixels.

    Returns:
        `float [C, B, S, S]`.
    """
    size, radius = planes.shape[-1], blur_radius(planes.shape[-1])
    if sigma.is_cpu:  # what weighs nothing in any of them changes no bit
        radius = min(radius, math.ceil(REACH * float(sigma.max())))
    # In float64, so that the rounded weights don't depend on a sample's place in the batch.
    sigma = sigma.to(torch.float64 if sigma.device.type != "mps" else torch.float32)
    offset = torch.arange(radius + 1, device=sigma.device)[:, None]
    weights = torch.exp(-0.5 * (offset / sigma).square()) * (offset <= REACH * sigma)
    weights = (weights / (2 * weights.sum(0) - 1)).float()[..., None, None]
    for dim, border in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        wide = F.pad(planes, border, mode="reflect")
        planes = wide.narrow(dim, radius, size) * weights[0]
        for off in range(1, radius + 1):
            pair = wide.narrow(dim, radius - off, size) + wide.narrow(dim, radius + off, size)
            planes += pair.mul_(weights[off])
    return planes
