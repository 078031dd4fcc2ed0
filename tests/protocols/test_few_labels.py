"""The few-label comparison: draws, its linear protocol, and the margin between two columns."""

import math
import statistics

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.splits import few_labels
from simclr_pl.protocols.features import Features
from simclr_pl.protocols.few_labels import Score, margin_in_standard_errors, score


def split(features: Tensor, labels: Tensor) -> Features:
    return Features(features, labels, torch.arange(len(labels)))


def noise(rows: int, seed: int, width: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def column(draws: list[float]) -> Score:
    return Score(all_labels=0.5, draws=draws, labels_per_class=5)


# Scores ------------------------------------------------------------------------------------------


def test_separable_classes_score_one() -> None:
    labels = torch.arange(60) % 3
    centres = 100 * torch.eye(3)
    train = split(centres[labels] + noise(60, 0, 3), labels)
    test = split(centres[labels] + noise(60, 1, 3), labels)
    got = score(train, test, labels_per_class=2, draws=3)
    assert (got.all_labels, got.draws, got.labels_per_class) == (1.0, [1.0] * 3, 2)
    assert (got.mean, got.spread) == (1.0, 0.0)


def test_noise_scores_chance() -> None:
    labels = torch.arange(400) % 4
    got = score(split(noise(400, 0), labels), split(noise(2000, 1), torch.arange(2000) % 4), 5, 4)
    assert got.all_labels == pytest.approx(0.25, abs=0.04)  # 4 standard errors
    assert got.mean == pytest.approx(0.25, abs=0.04)
    assert len(set(got.draws)) > 1


def overlapping() -> tuple[Features, Features]:
    """Classes that overlap, on features of very different scales, one of them constant."""
    scale = torch.tensor([1e-3, 1.0, 1e3, 1.0, 0.0])
    shift = torch.tensor([5.0, -2.0, 0.0, 0.0, 3.0])
    labels, test_labels = torch.arange(120) % 3, torch.arange(300) % 3
    offset = 0.7 * torch.eye(3, 5)
    return (
        split((noise(120, 0) + offset[labels]) * scale + shift, labels),
        split((noise(300, 1) + offset[test_labels]) * scale + shift, test_labels),
    )


def test_the_protocol_is_standardised_logistic_regression_with_c_1() -> None:
    train, test = overlapping()
    got = score(train, test, labels_per_class=10, draws=3)
    scaler = StandardScaler().fit(train.features.double())
    whole = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    whole.fit(train.features.double(), train.labels)
    assert got.all_labels == whole.score(test.features.double(), test.labels)
    assert 0.4 < got.all_labels < 0.9
    for draw, accuracy in enumerate(got.draws):
        chosen = few_labels(train.labels, 10, draw)
        few = LogisticRegression(C=1.0, max_iter=1000)
        few.fit(scaler.transform(train.features.double())[chosen], train.labels[chosen])
        assert accuracy == few.score(scaler.transform(test.features.double()), test.labels)


def test_unlabelled_images_change_nothing() -> None:
    train, test = overlapping()
    expected = score(train, test, 10, 2)
    mixed = []
    for part in (train, test):
        features = torch.stack([part.features, 50 * noise(len(part.labels), 9)], 1).flatten(0, 1)
        labels = torch.stack([part.labels, torch.full_like(part.labels, UNLABELLED)], 1).flatten()
        mixed.append(split(features, labels))
    assert score(*mixed, 10, 2) == expected


@pytest.mark.parametrize("unlabelled", ["train", "test"])
def test_a_split_without_labels_is_a_sentence(unlabelled: str) -> None:
    train, test = overlapping()
    nobody = torch.full_like(train.labels if unlabelled == "train" else test.labels, UNLABELLED)
    if unlabelled == "train":
        train = train._replace(labels=nobody)
    else:
        test = test._replace(labels=nobody)
    with pytest.raises(UserError, match="split has no labels, which this evaluation needs"):
        score(train, test, 2, 2)


def test_too_few_labels_of_a_class_are_a_sentence() -> None:
    with pytest.raises(UserError, match="has 40 labelled images, fewer than 41"):
        score(*overlapping(), 41, 1)


# Margins -----------------------------------------------------------------------------------------


def test_mean_and_spread_are_over_draws() -> None:
    draws = [0.5, 0.7, 0.9, 0.8]
    assert column(draws).mean == pytest.approx(statistics.mean(draws))
    assert column(draws).spread == pytest.approx(statistics.stdev(draws))
    assert column([0.5]).spread == 0


def test_the_margin_is_the_paired_t_statistic() -> None:
    better, worse = [0.80, 0.70, 0.90, 0.75], [0.60, 0.65, 0.72, 0.60]
    differences = [a - b for a, b in zip(better, worse, strict=True)]
    expected = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(4))
    got = margin_in_standard_errors(column(better), column(worse))
    assert got == pytest.approx(expected)
    assert margin_in_standard_errors(column(worse), column(better)) == pytest.approx(-expected)


def test_equal_columns_have_no_margin_and_a_constant_lead_a_large_one() -> None:
    same = column([0.5, 0.75])
    assert margin_in_standard_errors(same, same) == 0
    ahead = margin_in_standard_errors(column([0.75, 1.0]), same)
    assert math.isfinite(ahead)
    assert ahead > 1e6
