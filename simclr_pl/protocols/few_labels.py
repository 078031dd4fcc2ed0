"""Is pretraining worth it? One linear protocol for raw pixels, an untrained and a trained encoder.

Protocol "logistic": frozen features of clean images (eval mode, no augmentation), standardised by
the training images' mean and standard deviation, multinomial logistic regression with L2 strength
C = 1 (scikit-learn, L-BFGS), nothing tuned. Few labels are drawn class-balanced from the training
split, whose validation holdout is not touched; all draws are the same for every column.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.images.splits import few_labels
from simclr_pl.protocols.features import Features
from simclr_pl.protocols.logistic import fit_quietly

Floats = NDArray[np.float64]


class Score(NamedTuple):
    """Top-1 accuracies of one column, fractions from 0 to 1.

    Attributes:
        all_labels: with every label of the training split.
        draws: with few labels, one accuracy a draw.
        labels_per_class: how few.
    """

    all_labels: float
    draws: list[float]
    labels_per_class: int

    @property
    def mean(self) -> float:
        """Over draws."""
        return float(np.mean(self.draws))

    @property
    def spread(self) -> float:
        """Standard deviation over draws (n - 1)."""
        return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else 0.0


def margin_in_standard_errors(better: Score, worse: Score) -> float:
    """The mean difference over draws, in standard errors of that difference (paired draws)."""
    differences = np.array(better.draws) - np.array(worse.draws)
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() / max(error, 1e-12))


def score(train: Features, test: Features, labels_per_class: int, draws: int) -> Score:
    """Accuracies of one column, with all labels and with few.

    Args:
        train: the training split; unlabelled rows are left out.
        test: the split to score on.
        labels_per_class: of each few-label draw.
        draws: number of few-label draws.

    Raises:
        UserError: an unlabelled split, or a class with too few labelled images.
    """
    scored = test.labels != UNLABELLED
    known = (train.labels != UNLABELLED).nonzero()[:, 0]
    if not len(known) or not bool(scored.any()):
        raise UserError(
            "this comparison needs labels, and the data set has none: put the images into one "
            "folder a class, or judge the run by its curves (report)"
        )
    x, y = _numpy(train.features[known]), train.labels[known].numpy()
    x_test, y_test = _numpy(test.features[scored]), test.labels[scored].numpy()
    mean, std = x.mean(0), x.std(0)
    std[std < 1e-8] = 1.0
    x, x_test = (x - mean) / std, (x_test - mean) / std
    few = [
        _accuracy(x[chosen], y[chosen], x_test, y_test)
        for draw in range(draws)
        for chosen in [few_labels(torch.from_numpy(y), labels_per_class, draw).numpy()]
    ]
    return Score(_accuracy(x, y, x_test, y_test), few, labels_per_class)


def _numpy(features: Tensor) -> Floats:
    return features.double().numpy()


def _accuracy(x: Floats, y: NDArray[np.int64], x_test: Floats, y_test: NDArray[np.int64]) -> float:
    from sklearn.linear_model import LogisticRegression  # late: scipy takes a second

    model = LogisticRegression(C=1.0, max_iter=1000)
    fit_quietly(model, x, y)
    return float(model.score(x_test, y_test))
