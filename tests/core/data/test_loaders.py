"""Plans of batches: the same global batches on any number of ranks, and exact continuation."""

import math
from collections.abc import Iterable
from itertools import chain

import pytest
import torch

from simclr_pl.core.batch import Batch
from simclr_pl.core.data.loaders import EvaluationLoader, TrainLoader
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.distributed import shard
from simclr_pl.core.randomness import epoch_order

SIZE, BATCH = 47, 10


@pytest.fixture
def source() -> ArrayImages:
    """Images whose pixels are their index, labels 100 above it."""
    pixels = torch.arange(SIZE, dtype=torch.uint8)[:, None, None, None]
    return ArrayImages(pixels.expand(SIZE, 1, 4, 4).contiguous(), torch.arange(SIZE) + 100)


def loader(
    source: ArrayImages, epoch: int = 0, rank: int = 0, world: int = 1, seed: int = 0
) -> TrainLoader:
    return TrainLoader(source, BATCH, rank, world, seed, lambda: epoch)


def indices(batches: Iterable[Batch]) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


# Training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4, 10])
def test_slices_of_all_ranks_are_the_global_batch_in_order(source: ArrayImages, world: int) -> None:
    want = epoch_order(5, 3, SIZE)[: SIZE // BATCH * BATCH].view(-1, BATCH).tolist()
    ranks = [indices(loader(source, 3, rank, world, seed=5)) for rank in range(world)]
    together = [flat(slices) for slices in zip(*ranks, strict=True)]
    assert together == want
    sizes = {len(piece) for rank in ranks for piece in rank}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_micro_batches_are_runs_of_the_global_order_over_all_ranks(
    source: ArrayImages, world: int, count: int
) -> None:
    size = 23
    loaders = [
        TrainLoader(source, size, rank, world, 5, lambda: 3, micro_batches=count)
        for rank in range(world)
    ]
    whole = epoch_order(5, 3, SIZE)[: SIZE // size * size].split(size)
    for batches in zip(*loaders, strict=True):
        order = whole[loaders[0].state_dict()["batches"] - 1]
        parts = [b.split(each.parts) for b, each in zip(batches, loaders, strict=True)]
        micros = [flat(indices(shares)) for shares in zip(*parts, strict=True)]
        assert len(micros) == count
        assert flat(micros) == order.tolist()
        sizes = [len(micro) for micro in micros]
        assert max(sizes) - min(sizes) <= 1
        for shares in zip(*parts, strict=True):  # no rank is left out of any
            rows = [len(share.index) for share in shares]
            assert min(rows) >= 1
            assert max(rows) - min(rows) <= 1
    for each, batch in zip(loaders, batches, strict=True):
        assert sum(each.parts) == len(batch.index) == len(each.rows)
        assert each.counts == [len(other.rows) for other in loaders]


@pytest.mark.parametrize("count", [1, 3])
def test_one_process_sees_the_same_batches_with_any_number_of_micro_batches(
    source: ArrayImages, count: int
) -> None:
    train = TrainLoader(source, BATCH, 0, 1, 0, lambda: 2, micro_batches=count)
    assert indices(train) == indices(loader(source, 2))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_single_micro_batch_is_the_slice_of_the_batch(source: ArrayImages, world: int) -> None:
    for rank in range(world):
        train = TrainLoader(source, BATCH, rank, world, 0, lambda: 2, micro_batches=1)
        rows = torch.arange(BATCH)[shard(BATCH, rank, world)]
        assert train.rows.equal(rows)
        assert train.parts == [len(rows)]


def test_batches_hold_images_labels_and_epoch_of_their_index(source: ArrayImages) -> None:
    for batch in loader(source, 2):
        assert batch.images[:, 0, 0, 0].tolist() == batch.index.tolist()
        assert (batch.labels - 100).tolist() == batch.index.tolist()
        assert batch.epoch == 2


def test_a_short_last_batch_is_dropped(source: ArrayImages) -> None:
    batches = indices(loader(source))
    assert len(loader(source)) == len(batches) == SIZE // BATCH
    assert all(len(batch) == BATCH for batch in batches)
    seen = flat(batches)
    assert len(set(seen)) == len(seen) == 40


def test_a_batch_of_everything_is_one_batch(source: ArrayImages) -> None:
    (batch,) = TrainLoader(source, SIZE, 0, 1, 0, lambda: 0)
    assert sorted(batch.index.tolist()) == list(range(SIZE))


def test_every_image_is_dropped_in_some_epoch_and_seen_in_others(source: ArrayImages) -> None:
    seen = torch.zeros(SIZE)
    for epoch in range(40):
        seen[torch.tensor(indices(loader(source, epoch))).flatten()] += 1
    assert float(seen.min()) > 20
    assert float(seen.max()) <= 40
    assert int((seen == 40).sum()) < 5


def test_epochs_and_seeds_reorder(source: ArrayImages) -> None:
    first = indices(loader(source))
    assert first == indices(loader(source))
    assert first != indices(loader(source, epoch=1))
    assert first != indices(loader(source, seed=1))


def test_the_epoch_is_asked_for_with_the_first_batch(source: ArrayImages) -> None:
    """Lightning makes the iterator before it has restored the epoch of a checkpoint."""
    now = {"epoch": 0}
    train = TrainLoader(source, BATCH, 0, 1, 0, lambda: now["epoch"])
    iterator = iter(train)
    now["epoch"] = 7
    first = next(iterator)
    assert first.epoch == 7
    assert first.index.tolist() == epoch_order(0, 7, SIZE)[:BATCH].tolist()


def test_epochs_follow_each_other_whether_or_not_the_iterator_was_exhausted(
    source: ArrayImages,
) -> None:
    """Lightning takes `len` batches and asks no further."""
    now = {"epoch": 0}
    train = TrainLoader(source, BATCH, 0, 1, 0, lambda: now["epoch"])
    for epoch in range(4):
        now["epoch"] = epoch
        iterator = iter(train)
        got = [next(iterator).index.tolist() for _ in range(len(train))]
        if epoch % 2:
            assert list(iterator) == []
        assert got == indices(loader(source, epoch))


def test_an_epoch_left_in_the_middle_is_followed_by_a_full_one(source: ArrayImages) -> None:
    """As with `limit_train_batches`."""
    now = {"epoch": 0}
    train = TrainLoader(source, BATCH, 0, 1, 0, lambda: now["epoch"])
    next(iter(train))
    now["epoch"] = 1
    assert indices(train) == indices(loader(source, 1))


def test_a_second_pass_over_the_same_epoch_starts_at_its_beginning(source: ArrayImages) -> None:
    """As with `overfit_batches`, where every epoch is epoch 0 and Lightning stops early."""
    train = loader(source)
    want = indices(loader(source))
    iterator = iter(train)
    assert [next(iterator).index.tolist() for _ in range(2)] == want[:2]
    assert indices(train) == want


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_loaded_state_continues_behind_the_batches_handed_out(
    source: ArrayImages, done: int, world: int
) -> None:
    epoch = 2
    for rank in range(world):
        before = loader(source, epoch, rank, world)
        iterator = iter(before)
        for _ in range(done):
            next(iterator)
        after = loader(source, epoch, rank, world)
        after.load_state_dict(before.state_dict())
        assert indices(after) == indices(loader(source, epoch, rank, world))[done:]


def test_a_state_saved_on_one_rank_serves_any_number_of_ranks(source: ArrayImages) -> None:
    """The state counts global batches."""
    before = loader(source, 1, 0, 2)
    next(iter(before))
    rest = []
    for rank in range(3):
        after = loader(source, 1, rank, 3)
        after.load_state_dict(before.state_dict())
        rest.append(indices(after))
    together = [flat(slices) for slices in zip(*rest, strict=True)]
    assert together == indices(loader(source, 1))[1:]


def test_after_a_continued_epoch_the_next_one_is_full(source: ArrayImages) -> None:
    now = {"epoch": 0}
    train = TrainLoader(source, BATCH, 0, 1, 0, lambda: now["epoch"])
    train.load_state_dict({"epoch": 0, "batches": 3})
    assert len(indices(train)) == 1
    now["epoch"] = 1
    assert indices(train) == indices(loader(source, 1))


def test_a_continued_epoch_can_be_interrupted_again(source: ArrayImages) -> None:
    first, second, third = (loader(source, 2) for _ in range(3))
    got = [next(iter(first)).index.tolist()]
    second.load_state_dict(first.state_dict())
    got.append(next(iter(second)).index.tolist())
    third.load_state_dict(second.state_dict())
    assert got + indices(third) == indices(loader(source, 2))


@pytest.mark.parametrize("exhausted", [False, True])
def test_a_state_saved_at_an_epochs_end_starts_the_next_epoch_in_full(
    source: ArrayImages, exhausted: bool
) -> None:
    before = loader(source, 4)
    iterator = iter(before)
    for _ in range(len(before)):
        next(iterator)
    if exhausted:
        assert list(iterator) == []
    after = loader(source, 5)
    after.load_state_dict(before.state_dict())
    assert indices(after) == indices(loader(source, 5))


def test_a_state_saved_again_before_the_first_batch_is_the_one_loaded(source: ArrayImages) -> None:
    train = loader(source, 2)
    train.load_state_dict({"epoch": 2, "batches": 3})
    again = loader(source, 2)
    again.load_state_dict(train.state_dict())
    assert indices(again) == indices(loader(source, 2))[3:]


def test_the_state_is_a_copy(source: ArrayImages) -> None:
    train = loader(source)
    state = train.state_dict()
    iterator = iter(train)
    next(iterator)
    assert state != train.state_dict()
    kept = dict(state)
    after = loader(source)
    after.load_state_dict(state)
    next(iter(after))
    assert state == kept


# Evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 10, 16, 46, 47, 100])
def test_evaluation_batches_are_all_images_once_in_order(
    source: ArrayImages, batch_size: int
) -> None:
    evaluation = EvaluationLoader(source, batch_size, 0, 1, "both")
    batches = indices(evaluation)
    assert flat(batches) == list(range(SIZE))
    assert len(evaluation) == len(batches) == math.ceil(SIZE / batch_size)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("batch_size", [10, 16, 47])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_each_evaluation_batch_without_padding(
    source: ArrayImages, batch_size: int, world: int
) -> None:
    alone = indices(EvaluationLoader(source, batch_size, 0, 1, "clean"))
    ranks = [
        indices(EvaluationLoader(source, batch_size, rank, world, "clean")) for rank in range(world)
    ]
    assert [flat(slices) for slices in zip(*ranks, strict=True)] == alone
    for slices in zip(*ranks, strict=True):
        sizes = [len(piece) for piece in slices]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_part_of_a_split_is_shared_likewise(source: ArrayImages, world: int) -> None:
    rows = torch.arange(3, SIZE, 2)
    ranks = [
        indices(EvaluationLoader(source, 10, rank, world, "clean", rows)) for rank in range(world)
    ]
    assert [len(batches) for batches in ranks] == [3] * world
    assert flat(flat(slices) for slices in zip(*ranks, strict=True)) == rows.tolist()
    assert min(len(piece) for batches in ranks for piece in batches) >= 1


def test_evaluation_is_the_same_every_time_and_in_epoch_0(source: ArrayImages) -> None:
    evaluation = EvaluationLoader(source, BATCH, 0, 1, "both")
    first, second = list(evaluation), list(evaluation)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert a.images[:, 0, 0, 0].tolist() == a.index.tolist()
        assert a.epoch == b.epoch == 0


@pytest.mark.parametrize("size", [3, 5, 7, 339])
def test_no_image_is_left_alone_without_negatives(size: int) -> None:
    images = torch.zeros(size, 1, 8, 8, dtype=torch.uint8)
    loader = EvaluationLoader(ArrayImages(images, torch.zeros(size).long()), 2, 0, 1, "both")
    assert min(len(batch) for batch in loader.plan) >= 2
    assert torch.cat(loader.plan).tolist() == list(range(size))
