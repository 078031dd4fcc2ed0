"""Linear evaluation: a linear classifier on frozen features, the protocol papers report.

A grid of learning rates and weight decays is trained at once, as one wide matrix: all heads see the
same batches, so that forward and backward are two matrix products whatever the size of the grid.
The head is chosen on a tenth of the training split that is kept out for that; then it is trained
again on all of it. What is scored takes no part in any choice.

Features are standardised by the training split's mean and standard deviation: still a linear
classifier, and one grid serves any encoder. Each step is divided by the features' variance along
their principal directions (a diagonal preconditioner): the objective stays logistic regression with
L2 decay, and features of which a few directions hold nearly all variance converge as well. Without
it the features of an untrained ResNet came out 1.5 points below scikit-learn's solution.

Source: Chen et al. 2020, appendix B.6 (SGD with Nesterov momentum, no augmentation where
features are kept).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_pl.core.errors import UserError
from simclr_pl.core.randomness import epoch_order
from simclr_pl.images.groups import Groups
from simclr_pl.protocols.scoring import (
    Rows,
    Score,
    accuracies,
    best_first,
    choosing_parts,
    count_right,
    standardisation,
)

LEARNING_RATES = (0.03, 0.1, 0.3, 1.0)
"""For a batch of 256, in steps that would reach a minimum of known curvature at 1."""

WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

FLOOR = 1e-3
"""Share of the largest variance below which a direction's steps grow no more."""

PART = 8192
"""Rows that are standardised at a time."""

SCORES_AT_A_TIME = 4_000_000
"""Logits that exist at a time when a grid is judged: 16 MiB of float32."""


class Settings(NamedTuple):
    """How the heads are trained.

    Attributes:
        learning_rates: of the grid, each for a batch of 256.
        weight_decays: of the grid.
        epochs: passes over the features.
        steps: at least so many, which takes more epochs of a small data set.
        batch_size: rows a step.
        momentum: Nesterov's.
        seed: of the order, and of the part of train that chooses.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    epochs: int = 30
    steps: int = 1000
    batch_size: int = 512
    momentum: float = 0.9
    seed: int = 0

    @property
    def grid(self) -> list[tuple[float, float]]:
        """All pairs of learning rate and weight decay."""
        return [(lr, decay) for lr in self.learning_rates for decay in self.weight_decays]

    def plan(self, rows: int) -> tuple[int, int]:
        """Epochs, and steps in each, for so many rows."""
        steps = -(-rows // self.batch_size)
        return max(self.epochs, -(-self.steps // steps)), steps


class Heads(NamedTuple):
    """Linear classifiers, side by side.

    Attributes:
        weight: `[D, C, H]`.
        bias: `[C, H]`.
        mean: `[D]`, of the features they were trained on.
        std: `[D]`, likewise.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """`[N, D]` to `[N, C, H]`."""
        x = (features - self.mean) / self.std
        return (x @ self.weight.flatten(1)).view(len(x), *self.bias.shape) + self.bias


Source = Callable[[int], Tensor]
"""Features `[N, D]` of the training split in an epoch: the same in all, unless augmented."""


class Fitted(NamedTuple):
    """The head that was chosen, trained on all of train.

    Attributes:
        head: one of them, H = 1.
        chosen: its learning rate and weight decay.
    """

    head: Heads
    chosen: dict[str, float]

    def score(self, rows: Rows) -> Score:
        """Accuracies on the rows of a split, which had no part in the choice."""
        device = self.head.bias.device
        logits = self.head.logits(rows.features.to(device))[:, :, 0]
        return Score(chosen=self.chosen, **accuracies(logits, rows.labels.to(device)))


@torch.no_grad()
def fit_linear(
    source: Source,
    labels: Tensor,
    classes: int,
    settings: Settings,
    clean: Tensor | None = None,
    groups: Groups | None = None,
) -> Fitted:
    """The protocol but for its last step, `Fitted.score`: one head may score several splits.

    Trains the grid, chooses on a tenth of train, and trains the chosen head again on all of it.

    Args:
        source: features of an epoch; work is done on their device.
        labels: `int64 [N]`, all of them known.
        classes: C.
        settings: grid, epochs and seed.
        clean: `[N, D]`, features of the clean images, on which the head is chosen as it will be
            scored (default: epoch 0's features, which are clean unless `source` augments).
        groups: of the N images, which are whole in the tenth; `None` without groups.

    Raises:
        UserError: too few labels to choose on, or a grid of which every head diverges.
    """
    fits, chooses = choosing_parts(labels.cpu(), settings.seed, groups)
    first = source(0)
    part = _part(source, first, fits)
    heads = train_heads(part, labels[fits], classes, settings.grid, settings)
    judged = Rows(first if clean is None else clean, labels)
    order = best_first(*judge(heads, judged.at(chooses)))
    for pair in (settings.grid[h] for h in order):
        head = train_heads(lambda e: source(e) if e else first, labels, classes, [pair], settings)
        if bool(head.weight.isfinite().all()):
            return Fitted(head, {"learning_rate": pair[0], "weight_decay": pair[1]})
    raise UserError(
        f"every head diverged, at learning rates from {min(settings.learning_rates):g}: "
        "give smaller ones"
    )


def _part(source: Source, first: Tensor, rows: Tensor) -> Source:
    """Those rows of each epoch, cut once where all epochs are the same tensor."""
    part = first[rows]

    def of_epoch(epoch: int) -> Tensor:
        features = source(epoch) if epoch else first
        return part if features is first else features[rows]

    return of_epoch


@torch.no_grad()
def train_heads(
    source: Source,
    labels: Tensor,
    classes: int,
    grid: list[tuple[float, float]],
    settings: Settings,
) -> Heads:
    """Trains a head for each pair of learning rate and weight decay.

    Args:
        source: features of an epoch; work is done on their device.
        labels: `int64 [N]`, all of them known.
        classes: C.
        grid: H pairs.
        settings: the rest.
    """
    features = source(0)
    labels = labels.to(features.device)
    mean, std = standardisation(features)
    epochs, steps = settings.plan(len(labels))
    pairs = torch.tensor(grid, dtype=features.dtype, device=features.device)
    rate, decay = pairs[:, 0] * min(settings.batch_size, len(labels)) / 256, pairs[:, 1]
    directions, variance = principal_directions(features, mean, std)
    # What the curvature is like along each direction, for each head.
    curvature = variance[:, None, None] + FLOOR * variance.max() + decay
    curvature.clamp_min_(1e-6)  # of a collapsed encoder nothing varies at all
    weight = features.new_zeros(features.shape[1], classes, len(grid))
    bias = features.new_zeros(classes, len(grid))
    moving = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(epochs):
        features = source(epoch) if epoch else features
        order = epoch_order(settings.seed, epoch, len(labels)).to(features.device)
        for step, rows in enumerate(order.tensor_split(steps)):
            x, y = ((features[rows] - mean) / std) @ directions, labels[rows]
            logits = (x @ weight.flatten(1)).view(len(x), *bias.shape) + bias
            # The gradient of cross-entropy: what is predicted, less what is there.
            error = logits.softmax(1)
            error[torch.arange(len(x), device=x.device), y] -= 1
            error /= len(x)
            slope = (x.T @ error.flatten(1)).view_as(weight).addcmul_(decay, weight)
            slope /= curvature
            share = (epoch * steps + step) / (epochs * steps)
            now = rate * (0.5 * (1 + math.cos(math.pi * share)))
            for value, velocity, gradient in zip(
                (weight, bias), moving, (slope, error.sum(0)), strict=True
            ):
                velocity.mul_(settings.momentum).add_(gradient)
                value.sub_(now * gradient.add_(velocity, alpha=settings.momentum))
    return Heads((directions @ weight.flatten(1)).view_as(weight), bias, mean, std)


def principal_directions(features: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Of standardised features: orthonormal columns `[D, D]`, and the variance along each `[D]`."""
    total = sum(((part - mean) / std).T @ ((part - mean) / std) for part in features.split(PART))
    assert isinstance(total, Tensor)
    # On the CPU in float64: not every accelerator has it.
    variance, directions = torch.linalg.eigh(total.cpu().double() / len(features))
    return directions.to(features), variance.clamp_min(0).to(features)


def judge(heads: Heads, rows: Rows) -> tuple[Tensor, Tensor]:
    """Top-1 and mean cross-entropy of each head, `float64 [H]`; that NaN where one has diverged."""
    size = max(1, SCORES_AT_A_TIME // heads.bias.numel())
    right = heads.bias.new_zeros(heads.bias.shape[1], dtype=torch.float64)
    loss = torch.zeros_like(right)
    labels = rows.labels.to(right.device)
    for x, y in zip(rows.features.split(size), labels.split(size), strict=True):
        logits, target = heads.logits(x), y[:, None].expand(-1, len(right))
        right += count_right(logits, y)
        loss += F.cross_entropy(logits, target, reduction="none").sum(0)
    return right / len(labels), loss / len(labels)
