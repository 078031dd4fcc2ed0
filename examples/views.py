"""Views of your own: a function of seed, epoch and index, so that a resume sees the same ones."""

import torch
from torch import Tensor

from simclr_pl.core.randomness import uniform


class Dropped:
    """The whole image, without a share of its pixels."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], seed: int, share: float):
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (mean, std))
        self.seed, self.share = seed, share

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> list[Tensor]:
        """Two views, float `[B, C, S, S]`."""
        pixels, size = (images / 255 - self.mean) / self.std, images[0].numel()
        drawn = [uniform(self.seed, epoch, index, view, size) for view in (0, 1)]
        return [pixels.masked_fill(u.view_as(pixels) < self.share, 0.0) for u in drawn]
