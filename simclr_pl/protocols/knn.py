"""Weighted k-nearest-neighbour classification of features (Wu et al. 2018, section 3.4).

The k training images nearest to an image in cosine similarity s vote for their classes, each with
weight exp(s / temperature). Nothing is trained, so that the number depends on the features alone.
As a protocol: k and temperature are chosen on a tenth of train, and the split is scored once.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.protocols.scoring import Rows, Score, choose_and_score, count_right

QUERIES, BANK = 1024, 16384
"""Rows and columns of the similarities that exist at a time: 64 MiB of float32."""

KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.03, 0.07, 0.2)


@torch.no_grad()
def neighbours(
    queries: Tensor, bank: Tensor, k: int, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest rows of a bank, in blocks: memory doesn't grow with either side.

    Args:
        queries: `[Q, D]`; on their device the work is done.
        bank: `[N, D]`, on any device: moved in blocks.
        k: how many; all where there are fewer.
        rows: `int64 [M]`, the bank's rows that may be neighbours (default: all).

    Returns:
        Cosine similarities `[Q, k]`, nearest first, and the rows' places in the bank, `int64
        [Q, k]`.
    """
    rows = torch.arange(len(bank)) if rows is None else rows
    best = []
    for part in F.normalize(queries, dim=1).split(QUERIES):
        similarity = part.new_empty(len(part), 0)
        place = torch.empty(len(part), 0, dtype=torch.int64, device=part.device)
        for some in rows.split(BANK):
            block = F.normalize(bank[some].to(part), dim=1)
            near, where = (part @ block.T).topk(min(k, len(block)), dim=1)
            similarity = torch.cat([similarity, near], 1)
            place = torch.cat([place, some.to(part.device)[where]], 1)
            similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
            place = place.gather(1, order)
        best.append((similarity, place))
    similarities, places = zip(*best, strict=True)
    return torch.cat(similarities), torch.cat(places)


def vote(similarity: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """Each class's share of the weighted votes.

    Args:
        similarity: `[Q, k]`, nearest first.
        labels: `int64 [Q, k]`, the neighbours' classes.
        temperature: divides similarities; above 0.
        classes: how many there are.

    Returns:
        `[Q, classes]`, up to a factor for each query.
    """
    # Relative to the nearest: a small temperature would overflow otherwise.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    return weight.new_zeros(len(labels), classes).scatter_add_(1, labels, weight)


def evaluate_knn(
    train: Rows,
    scored: Rows,
    classes: int,
    seed: int,
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Score:
    """The whole protocol: the held-out tenth chooses, then all of train votes.

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
    grid = [(k, temperature) for k in ks for temperature in temperatures]
    log_shares = functools.partial(_log_shares, classes)
    # A class without a vote: its share counts as one in a thousand.
    chosen, found = choose_and_score(train, scored, seed, grid, log_shares, least=-6.9)
    return Score(chosen={"k": chosen[0], "temperature": chosen[1]}, **found)


def _log_shares(
    classes: int, bank: Rows, queries: Rows, grid: Sequence[tuple[int, float]]
) -> list[Tensor]:
    """Logarithms of each class's share of the votes, `[Q, C]` for each pair of the grid."""
    similarity, place = neighbours(queries.features, bank.features, max(k for k, _ in grid))
    labels = bank.labels[place]
    votes = (vote(similarity[:, :k], labels[:, :k], t, classes) for k, t in grid)
    return [(share / share.sum(1, keepdim=True)).log() for share in votes]


def knn_hits(
    queries: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
) -> Tensor:
    """Number of labelled queries that are classified right with each k, and of all of them, last.

    A query is not right where its features or its neighbours' are not finite.

    Args:
        queries: `[Q, D]`; on their device, in float32 at least, the work is done.
        labels: `int64 [Q]`, `UNLABELLED` where unknown: those don't count.
        bank: `[N, D]`, on any device.
        bank_labels: `int64 [N]`; unlabelled rows are nobody's neighbours.
        ks: numbers of neighbours, all of the bank where it has fewer.
        temperature: of the votes' weights.

    Returns:
        `[len(ks) + 1]`, counts on the queries' device.
    """
    known, scored = (bank_labels != UNLABELLED).nonzero()[:, 0], labels != UNLABELLED
    wide = torch.promote_types(queries.dtype, torch.float32)
    queries, labels = queries[scored].to(wide), labels[scored]
    similarity, place = neighbours(queries, bank, max(ks), known)
    # Numbered by their order: labels may be as large as identifiers are.
    every, numbers = torch.cat([bank_labels.to(labels.device), labels]).unique(return_inverse=True)
    near, truth = numbers[place], numbers[len(bank_labels) :]
    votes = (vote(similarity[:, :k], near[:, :k], temperature, len(every)) for k in ks)
    right = [count_right(shares[:, :, None], truth) for shares in votes]
    return torch.cat([*right, scored.sum()[None]])
