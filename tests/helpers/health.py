"""Rows whose health is known, and its numbers' names."""

import torch
from torch import Tensor

from simclr_pl.monitors.health_metrics import StepHealth, step_health

NAMES = {
    "health/chance_loss",
    "health/loss_over_chance", "health/positive_similarity", "health/negative_similarity",
    "health/alignment", "health/uniformity", "health/feature_std", "health/projection_std",
}  # fmt: skip


def draw(images: int, seed: int = 0, width: int = 6) -> tuple[Tensor, Tensor]:
    """Both views' features and projections, `[2, B, ...]`: of one cone, of all lengths."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, images, 2 * width, generator=generator, dtype=torch.float64)
    shared = torch.randn(images, 2 * width, generator=generator, dtype=torch.float64)
    both = (shared + 0.5 * noise + 0.3) * (0.1 + torch.arange(images)[:, None])
    return both[..., :width].abs(), both[..., width - 2 :]


def measured(views: tuple[Tensor, Tensor]) -> StepHealth:
    return step_health(*(rows.flatten(0, 1) for rows in views))


def by_svd(features: Tensor) -> float:
    values = torch.linalg.svdvals(features.double())
    share = values[values > values.max() * 1e-8] / values.sum()
    return float((-share * share.log()).sum().exp())
