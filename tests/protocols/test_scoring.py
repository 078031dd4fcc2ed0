"""Accuracies against scikit-learn: on one and on uneven ranks, with NaN, with few classes."""

import pytest
import torch
import torch.distributed as dist
from ranks import ranks
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.protocols import scoring
from simclr_pl.protocols.scoring import Hits, accuracies, count_right


def draw(classes: int, rows: int = 41) -> tuple[Tensor, Tensor]:
    """Logits that often are right; every fifth row is unlabelled, every seventh has a NaN."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator)
    logits[torch.arange(rows), labels] += 1
    logits[::7, 0] = torch.nan
    return logits, labels.where(torch.arange(rows) % 5 != 2, UNLABELLED)


def scikit_learn(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Rows with a NaN, which scikit-learn refuses, are misses."""
    classes, known = logits.shape[1], labels != UNLABELLED
    scored = known & logits.isfinite().all(1)
    return {
        f"top{k}": float(
            top_k_accuracy_score(
                labels[scored], logits[scored], k=k, labels=range(classes), normalize=False
            )
        )
        / int(known.sum())
        for k in ((1, 5) if classes > 5 else (1,))
    }


def hits(classes: int, sizes: list[int]) -> dict[str, float]:
    """Counted in batches; this rank's rows, or all without a group."""
    logits, labels = draw(classes)
    if dist.is_initialized():
        logits, labels = (part.split(sizes)[dist.get_rank()] for part in (logits, labels))
    counter = Hits(classes)
    for some, its in zip(logits.split(4), labels.split(4), strict=True):
        counter.update(some, its)
    return counter.compute()


@pytest.mark.parametrize("classes", [3, 6, 10])
def test_accuracies_are_scikit_learn_s(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SCORES_AT_A_TIME", 50)
    logits, labels = draw(classes)
    expected, known = scikit_learn(logits, labels), labels != UNLABELLED
    assert all(0 < value < 1 for value in expected.values())
    assert hits(classes, []) == expected  # to the last digit
    assert accuracies(logits[known], labels[known]) == expected


@pytest.mark.ddp
@pytest.mark.parametrize("classes", [3, 10])
def test_accuracies_of_uneven_ranks_are_scikit_learn_s(classes: int) -> None:
    expected = scikit_learn(*draw(classes))
    assert ranks(2, hits, classes, [10, 31]) == [expected, expected]


def test_without_labelled_rows_there_is_no_accuracy() -> None:
    counter = Hits(7)
    counter.update(torch.zeros(4, 7), torch.full((4,), UNLABELLED))
    assert counter.compute() == {}


def test_classifiers_side_by_side_are_counted_one_by_one() -> None:
    scores = torch.randn(50, 8, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 8
    for k in (1, 5):
        alone = [int(count_right(scores[:, :, [h]], labels, k)) for h in range(3)]
        assert count_right(scores, labels, k).tolist() == alone
        assert len(set(alone)) > 1


def test_a_score_that_is_not_finite_is_never_right() -> None:
    scores = torch.tensor([[torch.nan, torch.nan], [-torch.inf, -torch.inf], [0.0, -torch.inf]])
    assert accuracies(scores, torch.tensor([0, 0, 0])) == {"top1": 1 / 3}


def test_a_class_that_was_never_seen_is_not_among_the_five_likeliest() -> None:
    scores = torch.full((2, 6), -torch.inf)
    scores[:, :2] = 0.0
    assert accuracies(scores, torch.tensor([1, 2]))["top5"] == 0.5


def test_a_class_beside_a_score_that_is_no_number_is_never_right() -> None:
    scores = torch.arange(12.0).view(2, 6)
    scores[:, 0] = torch.nan
    labels = torch.tensor([4, 5])
    assert accuracies(scores, labels) == {"top1": 0, "top5": 0}
    counter = Hits(6)
    counter.update(scores, labels)
    assert counter.compute() == {"top1": 0, "top5": 0}
