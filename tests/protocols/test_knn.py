"""kNN: votes by their definition, in blocks, on ranks; k and temperature chosen on train alone."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from nearest import hits_literally
from ranks import ranks
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.distributed import shard, sum_over_ranks
from simclr_pl.protocols import knn
from simclr_pl.protocols.knn import evaluate_knn, knn_hits, neighbours
from simclr_pl.protocols.scoring import Rows, choosing_parts


def directions(rows: int, seed: int, noise: float) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 7
    x = 3 * torch.eye(7, 8)[labels] + noise * torch.randn(rows, 8, generator=generator)
    return Rows(x, labels)


def test_the_score_is_the_formula_s_with_all_of_train_and_what_the_tenth_chose() -> None:
    train, test = directions(420, 0, 2.0), directions(140, 1, 2.0)
    score = evaluate_knn(train, test, 7, 0, ks=(1, 30), temperatures=(0.1, 1.0))
    fits, chooses = choosing_parts(train.labels, 0)
    found = {
        (k, t): hits_literally(*train.at(chooses)[:2], *train.at(fits)[:2], k, t)
        for k in (1, 30)
        for t in (0.1, 1.0)
    }
    k, temperature = int(score.chosen["k"]), score.chosen["temperature"]
    assert found[k, temperature] == max(found.values())
    assert score.top1 == pytest.approx(hits_literally(*test[:2], *train[:2], k, temperature) / 140)
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


# The classifier -----------------------------------------------------------------------------------

TEMPERATURE = 0.07
CLASSES = 5


def draw(count: int, seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Noisy directions of classes, of all lengths, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, 8, generator=generator)
    lengths = torch.rand(count, 1, generator=generator) * 9 + 0.1
    return ((centres[labels] + 1.2 * noise) * lengths).double(), labels


def some_unlabelled(labels: Tensor) -> Tensor:
    return labels.where(torch.arange(len(labels)) % 4 != 1, UNLABELLED)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_votes_are_those_of_the_definition(unlabelled: bool) -> None:
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    if unlabelled:
        labels, bank_labels = some_unlabelled(labels), some_unlabelled(bank_labels)
    ks = (1, 7, 20, 120, 1000)  # the last is more than there are
    hits = knn_hits(queries, labels, bank, bank_labels, ks, TEMPERATURE).tolist()
    assert hits == [
        *(hits_literally(queries, labels, bank, bank_labels, k) for k in ks),
        int((labels != UNLABELLED).sum()),
    ]
    assert 0.3 * hits[-1] < min(hits[:-1]) < hits[-1]
    assert len(set(hits[:-1])) > 2


@pytest.mark.parametrize("k", [1, 20, 100])
def test_scikit_learn_agrees(k: int) -> None:
    (queries, labels), (bank, bank_labels) = draw(200, 3), draw(400, 4)

    def weights(distance: Any) -> Any:
        return np.exp((1 - distance) / TEMPERATURE)

    theirs = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    right = theirs.fit(bank, bank_labels).predict(queries) == labels.numpy()
    ours = knn_hits(queries, labels, bank, bank_labels, [k], TEMPERATURE)
    assert ours.tolist() == [int(right.sum()), 200]


@pytest.mark.parametrize(("rows_", "columns"), [(7, 11), (1, 1), (1000, 13), (64, 1000)])
def test_blocks_change_nothing(rows_: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (queries, _), (bank, _) = draw(50, 5), draw(90, 6)
    some = torch.arange(90)[torch.arange(90) % 3 != 0]
    similarity, place = neighbours(queries, bank, 20, some)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2)
    cosine[:, ::3] = -2
    assert place.equal(cosine.topk(20).indices)
    torch.testing.assert_close(similarity, cosine.topk(20).values)
    monkeypatch.setattr(knn, "QUERIES", rows_)
    monkeypatch.setattr(knn, "BANK", columns)
    again, places = neighbours(queries, bank, 20, some)
    assert places.equal(place)
    torch.testing.assert_close(again, similarity, rtol=1e-12, atol=1e-12)


def test_no_block_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "QUERIES", 16)
    monkeypatch.setattr(knn, "BANK", 32)
    (queries, labels), (bank, bank_labels) = draw(50, 5), draw(300, 6)
    sizes = []
    original = Tensor.topk
    monkeypatch.setattr(
        Tensor, "topk", lambda x, *a, **k: (sizes.append(x.numel()), original(x, *a, **k))[1]
    )
    knn_hits(queries, labels, bank, bank_labels, (20,), TEMPERATURE)
    assert max(sizes) == 16 * 40  # 20 kept and 20 new; a block has 16 x 32


@pytest.mark.parametrize("temperature", [1e-4, 0.07, 100.0])
def test_any_temperature_gives_numbers(temperature: float) -> None:
    """With a small one the nearest decides, with a large one the majority."""
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    got = knn_hits(queries.float(), labels, bank, bank_labels, [9], temperature)[0]
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2)
    near = bank_labels[cosine.topk(9).indices]
    if temperature == 1e-4:
        assert got == (near[:, 0] == labels).sum()
    if temperature == 100.0:
        # Between classes with as many votes, the sum of similarities decides.
        assert abs(got - (near.mode(1).values == labels).sum()) <= 9


def test_labels_may_be_as_large_as_identifiers_are() -> None:
    one, other = draw(30, 1), draw(50, 2)
    names = torch.tensor([2**62 - c for c in range(CLASSES)]).flip(0)
    plain, named = (
        knn_hits(one[0], to[one[1]], other[0], to[other[1]], (5, 20), TEMPERATURE).tolist()
        for to in (torch.arange(CLASSES), names)
    )
    assert named == plain


@pytest.mark.parametrize(("queries", "bank"), [(0, 40), (20, 0), (0, 0)])
def test_nothing_labelled_is_nothing_right(queries: int, bank: int) -> None:
    """A rank may have no labelled query; a bank may have no labelled row."""
    one, other = draw(30, 1), draw(50, 2)
    labels = torch.where(torch.arange(30) < queries, one[1], UNLABELLED)
    bank_labels = torch.where(torch.arange(50) < bank, other[1], UNLABELLED)
    hits = knn_hits(one[0], labels, other[0], bank_labels, (5, 20), TEMPERATURE).tolist()
    assert hits[-1] == queries
    if not bank or not queries:
        assert max(hits[:-1]) == 0


def test_what_has_no_numbers_is_not_right() -> None:
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    queries[::2] = torch.nan
    few = knn_hits(queries[1::2], labels[1::2], bank, bank_labels, (1, 20), TEMPERATURE)[:2]
    hits = knn_hits(queries, labels, bank, bank_labels, (1, 20), TEMPERATURE)
    assert hits.tolist() == [*few.tolist(), 61]
    bank[3] = torch.nan  # everybody's nearest neighbour
    assert knn_hits(queries, labels, bank, bank_labels, (1, 20), TEMPERATURE).tolist() == [0, 0, 61]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_features_are_compared_in_float32(dtype: torch.dtype) -> None:
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    queries, bank = queries.to(dtype), bank.to(dtype)
    got = knn_hits(queries, labels, bank, bank_labels, [20], TEMPERATURE)
    wide = knn_hits(queries.float(), labels, bank.float(), bank_labels, [20], TEMPERATURE)
    assert got.equal(wide)
    assert neighbours(queries.float(), bank, 3)[0].dtype == torch.float32


# Several ranks ------------------------------------------------------------------------------------


def shared_hits() -> list[int]:
    """Each rank's share of queries against the whole bank."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    labels = some_unlabelled(labels)
    labels[:20] = UNLABELLED  # no labelled query on the first of three
    mine = shard(61, rank, world)
    hits = knn_hits(queries[mine], labels[mine], bank, bank_labels, (20, 200), TEMPERATURE)
    counts: list[int] = sum_over_ranks(hits).tolist()
    return counts


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_count_what_one_process_counts(world: int) -> None:
    assert ranks(world, shared_hits) == [shared_hits()] * world
