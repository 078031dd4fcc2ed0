"""Linear evaluation: a linear classifier on frozen features, the protocol papers report.

A grid of learning rates and weight decays is trained at once, as one wide matrix: all heads see the
same batches, so that forward and backward are two matrix products whatever the size of the grid.
The head is chosen on a tenth of the training split that is kept out for that; then it is trained
again on all of it. What is scored takes no part in any choice.

Features are standardised by the training split's mean and standard deviation: still a linear
classifier, and one grid serves any encoder.

Source: Chen et al. 2020, appendix B.6 (SGD with Nesterov momentum, no augmentation where
features are kept); the L-BFGS variant is appendix B.8's.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_pl.batch import UNLABELLED
from simclr_pl.data.splits import holdout
from simclr_pl.errors import UserError
from simclr_pl.evaluate.features import Features
from simclr_pl.randomness import epoch_order

LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""For a batch of 256, as everywhere; features have unit variance."""

WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)


class Recipe(NamedTuple):
    """How the heads are trained.

    Attributes:
        learning_rates: of the grid, each for a batch of 256.
        weight_decays: of the grid.
        epochs: passes over the features.
        batch_size: rows a step.
        momentum: Nesterov's.
        seed: of the order, and of the part of train that chooses.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    epochs: int = 90
    batch_size: int = 1024
    momentum: float = 0.9
    seed: int = 0

    @property
    def grid(self) -> list[tuple[float, float]]:
        """All pairs of learning rate and weight decay."""
        return [(lr, decay) for lr in self.learning_rates for decay in self.weight_decays]


class Heads(NamedTuple):
    """Linear classifiers, side by side.

    Attributes:
        weight: `[D, H, C]`.
        bias: `[H, C]`.
        mean: `[D]`, of the features they were trained on.
        std: `[D]`, likewise.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """`[N, D]` to `[N, H, C]`."""
        x = (features - self.mean) / self.std
        return (x @ self.weight.flatten(1)).view(len(x), *self.bias.shape) + self.bias


Source = Callable[[int], Tensor]
"""Features `[N, D]` of the training split in an epoch: the same in all, unless augmented."""


@torch.no_grad()
def train_heads(
    source: Source, labels: Tensor, classes: int, grid: list[tuple[float, float]], recipe: Recipe
) -> Heads:
    """Trains a head for each pair of learning rate and weight decay.

    Args:
        source: features of an epoch; work is done on their device.
        labels: `int64 [N]`, all of them known.
        classes: C.
        grid: H pairs.
        recipe: the rest.
    """
    features = source(0)
    std, mean = torch.std_mean(features, dim=0, correction=0)
    std = torch.where(std < 1e-8, 1.0, std)
    count, size = len(labels), min(recipe.batch_size, len(labels))
    heads = len(grid)
    pairs = torch.tensor(grid, dtype=features.dtype, device=features.device)
    rate, decay = pairs[:, 0, None] * size / 256, pairs[:, 1, None]
    weight = features.new_zeros(features.shape[1], heads, classes)
    bias = features.new_zeros(heads, classes)
    moving = [torch.zeros_like(weight), torch.zeros_like(bias)]
    steps = -(-count // size)
    for epoch in range(recipe.epochs):
        features = source(epoch) if epoch else features
        order = epoch_order(recipe.seed, epoch, count).to(features.device)
        for step, rows in enumerate(order.tensor_split(steps)):
            x, y = (features[rows] - mean) / std, labels[rows]
            logits = (x @ weight.flatten(1)).view(len(x), heads, classes) + bias
            # The gradient of cross-entropy: what is predicted, less what is there.
            error = logits.softmax(2)
            error[torch.arange(len(x), device=x.device), :, y] -= 1
            error /= len(x)
            slope = (x.T @ error.flatten(1)).view_as(weight) + decay * weight
            now = rate * _cosine((epoch * steps + step) / (recipe.epochs * steps))
            for value, velocity, gradient in zip(
                (weight, bias), moving, (slope, error.sum(0)), strict=True
            ):
                velocity.mul_(recipe.momentum).add_(gradient)
                value.sub_(now * (gradient + recipe.momentum * velocity))
    return Heads(weight, bias, mean, std)


def _cosine(share: float) -> float:
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * share, dtype=torch.float64))))
