"""Ranks: the helper that starts them, shards, and gathers, with a gradient or without."""

import os
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, ranks
from torch import Tensor

from simclr_pl.core.distributed import (
    gather_rows,
    gather_with_gradient,
    rank_and_world,
    row_counts,
    shard,
    sum_over_ranks,
)

# The helper --------------------------------------------------------------------------------------


def _who() -> tuple[int, int, int]:
    return (*rank_and_world(), torch.get_num_threads())


def _raises_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the reason")
    dist.barrier()


def _dies_on_rank_1() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def _leaves_on_rank_1() -> None:
    if dist.get_rank() == 1:
        os._exit(0)


def _hangs_on_rank_1() -> None:
    if dist.get_rank() == 1:
        time.sleep(1000)


@pytest.mark.ddp
def test_every_rank_answers_in_order_with_one_thread() -> None:
    assert ranks(3, _who) == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_raises_on_rank_1, r"rank 1 raised:\n(.*\n)*.*KeyError: 'the reason'"),
        (_dies_on_rank_1, "rank 1 died with exit code 3"),
        (_leaves_on_rank_1, "rank 1 ended without a result"),
        (_hangs_on_rank_1, "rank 1 hangs: no end after 1 s"),
    ],
)
def test_a_rank_that_fails_fails_the_test_soon(function: Callable[[], None], said: str) -> None:
    ranks(2, _who)  # the imports are paid for
    start = time.monotonic()
    with pytest.raises(RankError, match=said):
        ranks(2, function, timeout=1)
    assert time.monotonic() - start < 20


# Rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 64, 1000])
def test_shards_cover_all_rows_once_and_differ_by_one_at_most(size: int, world: int) -> None:
    rows = torch.arange(size)
    shards = [rows[shard(size, rank, world)] for rank in range(world)]
    assert torch.cat(shards).equal(rows)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_one_process_needs_no_group() -> None:
    x = torch.randn(3, 2)
    assert rank_and_world() == (0, 1)
    assert row_counts(3, torch.device("cpu")) == [3]
    assert gather_rows(x, [3]).equal(x)
    assert sum_over_ranks(x.clone()).equal(x)


def _gather(parts: list[Tensor]) -> tuple[list[int], Tensor, Tensor, Tensor]:
    mine = parts[dist.get_rank()]
    counts = row_counts(len(mine), torch.device("cpu"))
    whole = gather_rows(mine.T.contiguous().T, counts)  # strides of another layout don't matter
    labels = gather_rows(torch.full((len(mine),), dist.get_rank()), counts)
    return counts, whole, labels, sum_over_ranks(mine.sum(0))


@pytest.mark.ddp
@pytest.mark.parametrize("sizes", [[4, 4], [1, 6, 3], [0, 2]])
def test_gathered_rows_are_those_of_all_ranks_in_order(sizes: list[int]) -> None:
    everything = torch.randn(sum(sizes), 3, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    for counts, whole, labels, total in ranks(len(sizes), _gather, everything.split(sizes)):
        assert counts == sizes
        assert whole.equal(everything)
        assert labels.equal(owner)
        torch.testing.assert_close(total, everything.sum(0), rtol=1e-12, atol=1e-12)


# Gathering with gradients -------------------------------------------------------------------------


def _gradient(images: list[int], counts: list[int] | None) -> Tensor:
    """Of the squares of all pairwise products, a loss in which each row meets all others."""
    rank = dist.get_rank() if dist.is_initialized() else None
    rows = torch.randn(2 * sum(images), 3, generator=torch.Generator().manual_seed(0)).double()
    first, second = rows.unflatten(0, (2, -1))
    mine = [part if rank is None else part.split(images)[rank] for part in (first, second)]
    own = torch.cat(mine).requires_grad_()
    z = torch.cat([gather_with_gradient(view, counts) for view in own.chunk(2)])
    (z @ z.T).square().mean().backward()
    assert own.grad is not None
    return own.grad


@pytest.mark.ddp
@pytest.mark.parametrize("images", [[2, 5], [3, 0, 4]])
def test_gathered_rows_have_the_gradient_of_the_loss_of_all_ranks(images: list[int]) -> None:
    """Ranks work out the same loss, whose gradient DDP divides by their number."""
    want = _gradient(images, None)
    for counts in (None, images) if 0 not in images else (None,):
        told = ranks(len(images), _gradient, images, counts)
        views = zip(*(part.chunk(2) for part in told), strict=True)
        got = torch.cat([torch.cat(view) for view in views]) / len(images)
        assert torch.allclose(got, want, rtol=1e-12, atol=0)
