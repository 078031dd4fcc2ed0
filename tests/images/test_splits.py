"""Draws of few labels and of a holdout: of each class, and the same for the same seed."""

import pytest
import torch
from arrays import counts

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.splits import draw_fraction, few_labels, holdout

LABELS = torch.tensor([0] * 30 + [1] * 12 + [7] * 50)[torch.randperm(92)]


@pytest.mark.parametrize("per_class", [1, 5, 12])
def test_a_draw_has_as_many_of_each_class_and_nobody_twice(per_class: int) -> None:
    chosen = few_labels(LABELS, per_class, 3)
    assert chosen.unique().equal(chosen)
    values, counts = LABELS[chosen].unique(return_counts=True)
    assert values.tolist() == [0, 1, 7]
    assert counts.tolist() == [per_class] * 3


def test_a_draw_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    torch.manual_seed(1)
    first = few_labels(LABELS, 5, 3)
    torch.manual_seed(2)
    assert few_labels(LABELS, 5, 3).equal(first)
    assert not few_labels(LABELS, 5, 4).equal(first)
    assert set(first.tolist()) <= set(few_labels(LABELS, 6, 3).tolist())  # more is a superset


def test_every_image_is_drawn_now_and_then() -> None:
    labels = torch.arange(20) % 2
    seen = torch.cat([few_labels(labels, 2, seed) for seed in range(60)])
    counts = seen.bincount(minlength=20)
    assert int(counts.min()) > 0
    assert int(counts.max()) < 30  # 12 on average


def test_a_class_with_too_few_images_is_a_sentence() -> None:
    with pytest.raises(UserError, match="class 1 has 12 labelled images, fewer than 13: ask for"):
        few_labels(LABELS, 13, 0)


# A share of each class ----------------------------------------------------------------------------

SEED_0 = [130, 156, 244, 353, 642, 697, 789, 841, 878, 905]
SEED_1 = [67, 268, 386, 399, 413, 615, 631, 654, 720, 842]
HALF_KNOWN = torch.cat([LABELS, torch.full((40,), UNLABELLED)])


def test_a_fraction_takes_its_share_of_each_class_and_no_unlabelled_image() -> None:
    chosen = draw_fraction(HALF_KNOWN, 0.1, 0)
    assert chosen.unique().equal(chosen)
    values, counts = HALF_KNOWN[chosen].unique(return_counts=True)
    assert values.tolist() == [0, 1, 7]
    assert counts.tolist() == [3, 1, 5]


def test_a_fraction_of_one_is_every_labelled_image() -> None:
    assert draw_fraction(HALF_KNOWN, 1.0, 5).equal(torch.arange(len(LABELS)))


def test_a_smaller_fraction_is_part_of_a_larger_one() -> None:
    parts = [set(draw_fraction(HALF_KNOWN, f, 2).tolist()) for f in (0.1, 0.3, 0.8)]
    assert parts[0] < parts[1] < parts[2]


def test_a_fraction_is_everybody_s() -> None:
    """Pinned: published numbers hang on which images these are."""
    labels = torch.arange(1000) % 10
    torch.manual_seed(3)
    assert draw_fraction(labels, 0.01, 0).tolist() == SEED_0
    assert draw_fraction(labels, 0.01, 1).tolist() == SEED_1


def test_every_image_comes_into_a_fraction_now_and_then() -> None:
    labels = torch.arange(20) % 2
    seen = torch.cat([draw_fraction(labels, 0.2, seed) for seed in range(60)]).bincount()
    assert int(seen.min()) > 0
    assert int(seen.max()) < 30  # 12 on average


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_a_sentence(fraction: float) -> None:
    with pytest.raises(UserError, match=r"label_fraction is .* but must be above 0 and at most 1"):
        draw_fraction(LABELS, fraction, 0)


@pytest.mark.parametrize(("fraction", "least"), [(0.04, "0.05"), (0.01, "0.05")])
def test_a_fraction_that_leaves_a_class_empty_says_which_would_do(
    fraction: float, least: str
) -> None:
    with pytest.raises(UserError, match=f"leaves class 1 empty, .* 12 .* give at least {least}"):
        draw_fraction(LABELS, fraction, 0)
    assert (LABELS[draw_fraction(LABELS, float(least), 0)] == 1).sum() == 1


@pytest.mark.parametrize("labels", [[-1, -1, -1], [4, 4, -1]])
def test_a_fraction_of_too_few_classes_is_a_sentence(labels: list[int]) -> None:
    with pytest.raises(UserError, match="a classifier needs at least 2"):
        draw_fraction(torch.tensor(labels), 1.0, 0)


# The holdout -----------------------------------------------------------------------------------


def test_the_holdout_takes_a_tenth_of_each_class() -> None:
    labels = torch.repeat_interleave(torch.tensor([0, 3, 1]), torch.tensor([200, 50, 30]))
    held = holdout(labels, seed=0)
    assert counts(labels[held], 4) == [20, 3, 0, 5]
    assert torch.equal(held, held.unique())  # rising, each once


def test_the_holdout_takes_one_of_a_small_class_at_least() -> None:
    labels = torch.tensor([0] * 40 + [1, 1, 2])
    assert counts(labels[holdout(labels, seed=3)], 3) == [4, 1, 1]


def test_the_holdout_ignores_unlabelled_images_unless_all_are() -> None:
    labels = torch.tensor([UNLABELLED] * 100 + [0] * 20 + [1] * 20)
    assert sorted(labels[holdout(labels, 0)].tolist()) == [0, 0, 1, 1]
    assert len(holdout(torch.full((70,), UNLABELLED), 0)) == 7


def test_the_holdout_is_random_in_each_class_and_hangs_on_the_seed_alone() -> None:
    labels = torch.arange(1000) % 4
    first = holdout(labels, 0)
    assert torch.equal(first, holdout(labels, 0))
    shared = set(first.tolist()) & set(holdout(labels, 1).tolist())
    assert len(shared) < 30  # of 100, by chance 10
    # Over many seeds every image is as likely as any other: a tenth of 300, give or take.
    chosen = torch.zeros(40)
    for seed in range(300):
        chosen[holdout(torch.arange(40) % 2, seed)] += 1
    assert 8 <= float(chosen.min()) <= 30 <= float(chosen.max()) <= 60
