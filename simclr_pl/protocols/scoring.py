"""What protocols on frozen features share: labelled rows, the part that chooses, accuracies."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.images.splits import holdout, no_labels
from simclr_pl.protocols.features import Features


class Rows(NamedTuple):
    """Features whose classes are known.

    Attributes:
        features: `float [N, D]`, all finite.
        labels: `int64 [N]`, none of them `UNLABELLED`.
    """

    features: Tensor
    labels: Tensor

    def at(self, places: Tensor) -> "Rows":
        """Those rows alone."""
        return Rows(self.features[places], self.labels[places])

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device."""
        return Rows(self.features.to(device), self.labels.to(device))


class Score(NamedTuple):
    """What a protocol says of an encoder.

    Attributes:
        top1: share of the scored split that is classified right.
        top5: share whose class is among the five likeliest (all, where there are fewer).
        chosen: what was chosen on the held-out part of train.
    """

    top1: float
    top5: float
    chosen: dict[str, float]


def labelled(split: Features, name: str) -> Rows:
    """The labelled rows of a split, in float32 at least.

    Raises:
        UserError: no labels, or features that are not finite.
    """
    known = split.labels != UNLABELLED
    if not bool(known.any()):
        raise no_labels(name)
    features = split.features[known]
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if not bool(features.isfinite().all()):
        raise UserError(
            f"features of the {name} split are not finite (NaN or infinity): the encoder's weights "
            "or the images are broken; use an earlier checkpoint"
        )
    return Rows(features, split.labels[known])


def count_right(logits: Tensor, labels: Tensor) -> Tensor:
    """`int64 [3]`: labelled images, those classified right, and right among the five likeliest.

    On the logits' device, without waiting for it. What is not finite is not right.

    Args:
        logits: `[B, classes]`.
        labels: `int64 [B]`, `UNLABELLED` where unknown.
    """
    known = labels != UNLABELLED
    likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = (likeliest == labels[:, None]) & logits.isfinite().all(1, keepdim=True)
    return torch.stack([known.sum(), right[:, 0].sum(), right.any(1).sum()])


def choosing_parts(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the part of train to fit on, and of the class-balanced tenth that chooses.

    Args:
        labels: `int64 [N]`, all of them known.
        seed: of the choice.

    Raises:
        UserError: fewer than two classes to fit on.
    """
    chooses = holdout(labels, seed)
    fits = torch.ones(len(labels), dtype=torch.bool)
    fits[chooses] = False
    if len(labels.cpu()[fits].unique()) < 2:
        raise UserError(
            f"train has {len(labels)} labelled images of {len(labels.unique())} "
            "classes: a classifier needs at least 2 classes with 2 labelled images each"
        )
    return fits.nonzero()[:, 0], chooses


def best_first(top1: Tensor, loss: Tensor) -> list[int]:
    """Candidates by top-1, and by cross-entropy where that is equal; diverged ones are left out.

    Args:
        top1: `[H]`.
        loss: `[H]`, cross-entropies; not finite where a candidate has diverged.
    """
    quality = list(zip((-top1).tolist(), loss.tolist(), strict=True))
    return sorted(loss.isfinite().nonzero()[:, 0].tolist(), key=lambda h: quality[h])


def best_of(candidates: Sequence[Tensor], labels: Tensor, least: float) -> int:
    """The candidate that classifies best.

    Args:
        candidates: logarithms of probabilities, `[N, C]` each.
        labels: `int64 [N]`.
        least: what cross-entropy counts at least for the right class: it isn't impossible.
    """
    top1 = [accuracies(scores, labels)[0] for scores in candidates]
    right = [scores.gather(1, labels[:, None]).clamp(min=least) for scores in candidates]
    loss = [-float(scores.mean()) for scores in right]
    return best_first(torch.tensor(top1), torch.tensor(loss))[0]


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; infinite for constant ones.

    Those say nothing; divided by their rounding error they would say anything.

    Args:
        features: `float [N, D]`.
    """
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * (1e-2 + mean.abs()), std, torch.inf)


def accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 of scores, where minus infinity is never right, nor anything beside a NaN.

    Args:
        scores: `[N, C]`; the larger, the likelier.
        labels: `int64 [N]`.
    """
    values, places = scores.topk(min(5, scores.shape[1]), dim=1)
    # (NaN counts as the largest.)
    right = (places == labels[:, None]) & values.isfinite() & ~values[:, :1].isnan()
    return float(right[:, 0].double().mean()), float(right.any(1).double().mean())


def check_above_zero(name: str, numbers: Sequence[float]) -> None:
    """For options that are lists.

    Raises:
        UserError: none, or one that is not above 0.
    """
    if not numbers or not min(numbers) > 0:
        raise UserError(f"{name} is {list(numbers)}, but must be one or more numbers above 0")
