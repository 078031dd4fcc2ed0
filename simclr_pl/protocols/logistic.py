"""The paper's transfer protocol: L2-regularised multinomial logistic regression, by L-BFGS.

Source: Chen et al. 2020, appendix B.8 (after Kornblith et al. 2019): no augmentation, the strength
chosen from log-spaced values on held-out images, then fitted again on all of train. There are
45 strengths from 1e-6 to 1e5 there; here features are standardised, and the weakest, which take
longest and overfit, are left out.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from simclr_pl.protocols.scoring import Rows, Score, choose_and_score, standardisation

STRENGTHS = tuple(float(c) for c in np.logspace(-5, 2, 15))
"""scikit-learn's C, the inverse of the L2 penalty on a sum over images; two values a decade."""

ITERATIONS = 500
"""Of L-BFGS, at most; each strength starts from the solution of the one before."""


def evaluate_logistic(
    train: Rows, scored: Rows, classes: int, seed: int, strengths: Sequence[float] = STRENGTHS
) -> Score:
    """The whole protocol: strength chosen on a tenth of train, fitted again, scored once.

    Args:
        train: labelled rows of train.
        scored: labelled rows of the split to score.
        classes: C.
        seed: of the part of train that chooses.
        strengths: scikit-learn's C, rising.

    Raises:
        UserError: too few labels to choose on.
    """
    log_probabilities = functools.partial(_log_probabilities, classes)
    chosen, found = choose_and_score(train, scored, seed, strengths, log_probabilities, least=-100)
    return Score(chosen={"inverse_l2_strength": chosen}, **found)


def _log_probabilities(
    classes: int, train: Rows, scored: Rows, strengths: Sequence[float]
) -> list[torch.Tensor]:
    """`[N, C]` of the scored rows for each strength; minus infinity for classes never seen."""
    from sklearn.linear_model import LogisticRegression  # late: scipy takes a second

    mean, std = standardisation(train.features.double())
    x, x_scored = (((rows.features - mean) / std).numpy() for rows in (train, scored))
    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    found = []
    for strength in strengths:
        model.set_params(C=strength)
        fit_quietly(model, x, train.labels.numpy())
        scores = torch.full((len(x_scored), classes), -torch.inf, dtype=torch.float64)
        scores[:, model.classes_] = torch.from_numpy(model.predict_log_proba(x_scored))
        found.append(scores)
    return found


def fit_quietly(model: Any, x: Any, y: Any) -> None:
    """Fits scikit-learn's model without its warning that the optimum has not quite been reached.

    With a weak penalty the last digits take thousands of iterations, and change no accuracy.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
