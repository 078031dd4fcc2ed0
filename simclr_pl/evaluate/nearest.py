"""kNN as a protocol: k and temperature chosen on a tenth of train, the split scored once."""

from collections.abc import Sequence

from torch import Tensor

from simclr_pl.evaluate.knn import neighbours, vote
from simclr_pl.evaluate.scoring import Rows, Score, accuracies, best_of, choosing_parts

KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.03, 0.07, 0.2)


def evaluate_knn(
    train: Rows,
    scored: Rows,
    classes: int,
    seed: int,
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Score:
    """The whole protocol: the held-out tenth against the rest chooses, then all of train votes.

    Args:
        train: labelled rows of train.
        scored: labelled rows of the split to score.
        classes: C.
        seed: of the part of train that chooses.
        ks: numbers of neighbours to choose from.
        temperatures: of the votes, to choose from.

    Raises:
        UserError: too few labels to choose on.
    """
    fits, chooses = choosing_parts(train.labels.cpu(), seed)
    grid = [(k, temperature) for k in ks for temperature in temperatures]
    judged = train.at(chooses)
    candidates = _log_shares(train.at(fits), judged, classes, grid)
    # A class without a vote: its share counts as one in a thousand.
    k, temperature = grid[best_of(candidates, judged.labels, least=-6.9)]
    (scores,) = _log_shares(train, scored, classes, [(k, temperature)])
    return Score(*accuracies(scores, scored.labels), {"k": k, "temperature": temperature})


def _log_shares(
    bank: Rows, queries: Rows, classes: int, grid: list[tuple[int, float]]
) -> list[Tensor]:
    """Logarithms of each class's share of the votes, `[Q, C]` for each pair of the grid."""
    similarity, place = neighbours(queries.features, bank.features, max(k for k, _ in grid))
    labels = bank.labels[place]
    votes = (vote(similarity[:, :k], labels[:, :k], t, classes) for k, t in grid)
    return [(share / share.sum(1, keepdim=True)).log() for share in votes]
