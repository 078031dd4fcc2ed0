"""kNN as a protocol: k and temperature are chosen on train alone, all of train votes."""

import pytest
import torch
import torch.nn.functional as F

from simclr_pl.protocols.knn import evaluate_knn
from simclr_pl.protocols.scoring import Rows, choosing_parts


def directions(rows: int, seed: int, noise: float) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 7
    x = 3 * torch.eye(7, 8)[labels] + noise * torch.randn(rows, 8, generator=generator)
    return Rows(x, labels)


def literal(bank: Rows, queries: Rows, k: int, temperature: float) -> float:
    """Top-1 from the formula, one query at a time."""
    right = 0
    for x, y in zip(queries.features, queries.labels.tolist(), strict=True):
        similarity = F.cosine_similarity(x[None], bank.features)
        near = similarity.argsort(descending=True)[:k].tolist()
        votes = [0.0] * 7
        for place in near:
            votes[int(bank.labels[place])] += float((similarity[place] / temperature).exp())
        right += votes.index(max(votes)) == y
    return right / len(queries.labels)


def test_the_score_is_the_formula_s_with_all_of_train_and_what_the_tenth_chose() -> None:
    train, test = directions(420, 0, 2.0), directions(140, 1, 2.0)
    score = evaluate_knn(train, test, 7, 0, ks=(1, 30), temperatures=(0.1, 1.0))
    fits, chooses = choosing_parts(train.labels, 0)
    found = {
        (k, t): literal(train.at(fits), train.at(chooses), k, t)
        for k in (1, 30)
        for t in (0.1, 1.0)
    }
    k, temperature = int(score.chosen["k"]), score.chosen["temperature"]
    assert found[k, temperature] == max(found.values())
    assert score.top1 == pytest.approx(literal(train, test, k, temperature))
    assert score.top5 is not None
    assert score.top1 < score.top5 < 1
    spoilt = test._replace(labels=test.labels * 0)
    assert evaluate_knn(train, spoilt, 7, 0, (1, 30), (0.1, 1.0)).chosen == score.chosen


def test_k_beyond_the_bank_is_all_of_it_and_no_votes_are_never_right() -> None:
    train, test = directions(42, 0, 0.1), directions(21, 1, 0.1)
    assert evaluate_knn(train, test, 7, 0, ks=(10_000,)).top1 == 1
    one = evaluate_knn(train, test, 7, 0, ks=(1,), temperatures=(0.03,))
    other = evaluate_knn(train, test._replace(labels=(test.labels + 1) % 7), 7, 0, (1,), (0.03,))
    assert (one.top1, one.top5) == (1, 1)
    assert (other.top1, other.top5) == (0, 0)
