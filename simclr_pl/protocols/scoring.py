"""Shared by the protocols on frozen features: labelled rows, the choice on a tenth, accuracies."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_stat_scores

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError, check
from simclr_pl.images.groups import Groups
from simclr_pl.images.readers.reader import say_once
from simclr_pl.images.splits import choosing_tenth, no_labels
from simclr_pl.protocols.features import Features

T = TypeVar("T")

SCORES_AT_A_TIME = 1_000_000
"""Scores that are counted at a time: torchmetrics makes several `int64` of each."""


class Rows(NamedTuple):
    """Features whose classes are known.

    Attributes:
        features: `float [N, D]`, all finite.
        labels: `int64 [N]`, none of them `UNLABELLED`.
        groups: of the N images; `None` without groups.
    """

    features: Tensor
    labels: Tensor
    groups: Groups | None = None

    def at(self, places: Tensor) -> "Rows":
        """Those rows alone."""
        groups = None if self.groups is None else self.groups.at(places.cpu())
        return Rows(self.features[places], self.labels[places], groups)

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device; groups stay on the CPU."""
        return Rows(self.features.to(device), self.labels.to(device), self.groups)


class Score(NamedTuple):
    """The result of a protocol.

    Attributes:
        top1: share of the scored split that is classified right.
        chosen: the parameters that were chosen on the held-out part of train.
        top5: share whose class is among the five likeliest; `None` with fewer than six classes.
    """

    top1: float
    chosen: dict[str, float]
    top5: float | None = None


def labelled(split: Features, name: str, groups: Groups | None = None) -> Rows:
    """The labelled rows of a split, in float32 at least.

    Args:
        split: its features.
        name: train, val or test, for errors.
        groups: of all images of the split; `None` without groups.

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
    groups = None if groups is None else groups.at(split.index[known])
    return Rows(features, split.labels[known], groups)


def top_ks(classes: int) -> tuple[int, ...]:
    """The k of top-k accuracies: 1, and 5 with six classes or more.

    With fewer classes, every class is among the five likeliest.
    """
    return (1, 5) if classes > 5 else (1,)


class Hits(Metric):
    """Accuracies of batches as they come, over all ranks.

    torchmetrics keeps the counts and sums them over ranks. A batch is counted here, since
    torchmetrics' own update would make the host wait for the device, and takes NaN for the largest
    score: a row with a number that is not finite is not right.

    Args:
        classes: C.
        device: of the logits.

    Attributes:
        counts: `int64 [3]`: labelled rows, those classified right, right among the five likeliest.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.ks = top_ks(classes)
        none = torch.zeros(3, dtype=torch.int64, device=device)
        self.add_state("counts", none, dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """True: counts may come from a checkpoint, so that torchmetrics has nothing to warn of."""
        return True

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: `[B, C]`.
            labels: `int64 [B]`, `UNLABELLED` where unknown.
        """
        known = labels != UNLABELLED
        likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices
        right = (likeliest == labels[:, None]) & logits.isfinite().all(1, keepdim=True)
        found = torch.stack([known.sum(), right[:, 0].sum(), right.any(1).sum()])
        self.counts = self.counts + found

    def compute(self) -> dict[str, float]:
        """`top1` and, of six classes or more, `top5`; empty where no row is labelled."""
        rows, *right = self.counts.tolist()
        return {f"top{k}": n / rows for k, n in zip(self.ks, right, strict=False) if rows}


def count_right(scores: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Number of rows that each of H classifiers has right: `int64 [H]`, counted by torchmetrics.

    Two kinds of rows are not right: rows that hold a NaN, which torchmetrics takes for the largest
    score, and rows with an infinity for their own class, since minus infinity is a class never
    seen.

    Args:
        scores: `[N, C, H]`; the larger, the likelier.
        labels: `int64 [N]`, all of them known.
        k: right is a class among the k likeliest.
    """
    _, classes, heads = scores.shape
    numbers = torch.arange(classes, device=scores.device)[:, None]
    right = torch.zeros(heads, dtype=torch.int64, device=scores.device)
    size = max(1, SCORES_AT_A_TIME // (classes * heads))
    for some, its in zip(scores.split(size), labels.split(size), strict=True):
        own = its[:, None, None] == numbers
        missed = (some.isnan() | (own & some.isinf())).any(1, keepdim=True)
        clean = some.where(~missed, -own.to(some))  # the row's own class comes last
        # To torchmetrics a classifier is a sample of many places.
        clean, truth = clean.transpose(0, 2), its.expand(heads, -1)
        right += multiclass_stat_scores(
            clean, truth, classes, "micro", k, "samplewise", validate_args=False
        )[:, 0]
    return right


def choosing_parts(
    labels: Tensor, seed: int, groups: Groups | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of the part of train to fit on, and of the tenth that chooses hyper-parameters.

    That tenth is class-balanced; of images in groups it is whole groups, which a line says.

    Args:
        labels: `int64 [N]`, all of them known.
        seed: of the choice.
        groups: of the N images; `None` without groups.

    Raises:
        UserError: fewer than two classes to fit on, or images of one group alone.
    """
    chooses = choosing_tenth(labels, seed, groups)
    fits = torch.ones(len(labels), dtype=torch.bool)
    fits[chooses] = False
    if len(labels.cpu()[fits].unique()) < 2:
        needed = "2 labelled images" if groups is None else "labelled images of 2 groups"
        raise UserError(
            f"train has {len(labels)} labelled images of {len(labels.unique())} "
            f"classes: a classifier needs at least 2 classes with {needed} each"
        )
    if groups is not None:
        say_once(
            f"hyper-parameters are chosen on whole groups of train ({groups.amount(chooses)}: "
            f"{len(chooses)} of {len(labels)} labelled images, {len(chooses) / len(labels):.1%}), "
            "not balanced by class"
        )
    return fits.nonzero()[:, 0], chooses


def best_first(top1: Tensor, loss: Tensor) -> list[int]:
    """Candidates by top-1, equal ones by cross-entropy; diverged candidates are left out.

    Args:
        top1: `[H]`.
        loss: `[H]`, cross-entropies; not finite where a candidate has diverged.
    """
    quality = list(zip((-top1).tolist(), loss.tolist(), strict=True))
    return sorted(loss.isfinite().nonzero()[:, 0].tolist(), key=lambda h: quality[h])


def choose_and_score(
    train: Rows,
    scored: Rows,
    seed: int,
    grid: Sequence[T],
    scores_of: Callable[[Rows, Rows, Sequence[T]], list[Tensor]],
    least: float,
) -> tuple[T, dict[str, float]]:
    """Chooses of a grid on a tenth of train against the rest, then scores once with all of train.

    Args:
        train: labelled rows of train.
        scored: labelled rows of the split to score.
        seed: of the part of train that chooses.
        grid: candidates.
        scores_of: fits each candidate on the first rows, and returns logarithms of probabilities of
            the second, `[N, C]` for each candidate.
        least: the lowest of these logarithms that cross-entropy counts for a row's own class.

    Returns:
        The candidate, and its accuracies.

    Raises:
        UserError: too few labels to choose on.
    """
    fits, chooses = choosing_parts(train.labels.cpu(), seed, train.groups)
    judged, top1, loss = train.at(chooses), [], []
    for scores in scores_of(train.at(fits), judged, grid):
        top1.append(accuracies(scores, judged.labels)["top1"])
        right = scores.gather(1, judged.labels[:, None]).clamp(min=least)
        loss.append(-float(right.mean()))
    chosen = grid[best_first(torch.tensor(top1), torch.tensor(loss))[0]]
    (final,) = scores_of(train, scored, [chosen])
    return chosen, accuracies(final, scored.labels)


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; constant features get an infinite deviation.

    Constant features say nothing; divided by their rounding error they would say anything.

    Args:
        features: `float [N, D]`.
    """
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * (1e-2 + mean.abs()), std, torch.inf)


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1` and, of six classes or more, `top5` of labelled rows.

    Args:
        scores: `[N, C]`; the larger, the likelier.
        labels: `int64 [N]`.
    """
    ks, scores = top_ks(scores.shape[1]), scores[:, :, None]
    return {f"top{k}": int(count_right(scores, labels, k)) / len(labels) for k in ks}


def check_above_zero(name: str, numbers: Sequence[float]) -> None:
    """Checks an option that is a list.

    Raises:
        UserError: an empty list, or a number that is not above 0.
    """
    fits = bool(numbers) and min(numbers) > 0
    check(fits, name, list(numbers), "one or more numbers above 0")
