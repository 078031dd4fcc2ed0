"""The protocol of `compare`: one linear classifier for pixels, an untrained and a trained encoder.

Protocol "logistic": frozen features of clean images (eval mode, no augmentation), standardised by
the training images' mean and standard deviation, multinomial logistic regression with L2 strength
C = 1 (scikit-learn, L-BFGS), nothing tuned. Few labels are drawn class-balanced from the training
split, whose validation holdout is not touched; all draws are the same for every column.
"""

import math
import statistics
from typing import NamedTuple

from simclr_pl.images.groups import Groups
from simclr_pl.images.splits import few_labels
from simclr_pl.protocols.features import Features
from simclr_pl.protocols.logistic import fit_quietly
from simclr_pl.protocols.scoring import Rows, labelled, standardisation


class Score(NamedTuple):
    """Top-1 accuracies of one column, fractions from 0 to 1.

    Attributes:
        all_labels: with every label of the training split.
        draws: with few labels, one accuracy a draw.
        labels_per_class: images of each class in a draw.
    """

    all_labels: float
    draws: list[float]
    labels_per_class: int

    @property
    def mean(self) -> float:
        """Mean over draws."""
        return statistics.fmean(self.draws)

    @property
    def spread(self) -> float:
        """Standard deviation over draws (n - 1)."""
        return statistics.stdev(self.draws) if len(self.draws) > 1 else 0.0


def margin_in_standard_errors(better: Score, worse: Score) -> float:
    """The mean difference over draws, in standard errors of that difference (paired draws)."""
    differences = [a - b for a, b in zip(better.draws, worse.draws, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences) / max(error, 1e-12)


def score(
    train: Features,
    test: Features,
    labels_per_class: int,
    draws: int,
    groups: Groups | None = None,
) -> Score:
    """Accuracies of one column, with all labels and with few.

    Args:
        train: the training split; unlabelled rows are left out.
        test: the split to score on, likewise.
        labels_per_class: images of each class in a few-label draw.
        draws: number of few-label draws.
        groups: of train's images; few labels are then those of few groups.

    Raises:
        UserError: an unlabelled split, features that are not finite, or a class with too few
            labelled images.
    """
    every, scored = labelled(train, "train", groups), labelled(test, "scored")
    mean, std = standardisation(every.features.double())
    every, scored = (
        rows._replace(features=(rows.features - mean) / std) for rows in (every, scored)
    )

    def accuracy(known: Rows) -> float:
        from sklearn.linear_model import LogisticRegression  # late: scipy takes a second

        model = LogisticRegression(C=1.0, max_iter=1000)
        fit_quietly(model, *(part.numpy() for part in known[:2]))
        return float(model.score(*(part.numpy() for part in scored[:2])))

    few = [
        accuracy(every.at(few_labels(every.labels, labels_per_class, draw, every.groups)))
        for draw in range(draws)
    ]
    return Score(accuracy(every), few, labels_per_class)
