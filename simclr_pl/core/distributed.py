"""Ranks: who am I, which rows are mine, and what all of us hold together.

All of it works with one process too, where it does nothing, and with ranks of different sizes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks: (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def shard(size: int, rank: int, world: int) -> slice:
    """The rows of `size` that belong to `rank`: shards cover all, and differ by one row at most."""
    return slice(size * rank // world, size * (rank + 1) // world)


def row_counts(rows: int, device: torch.device) -> list[int]:
    """How many rows each rank holds, in the order of ranks."""
    _, world = rank_and_world()
    if world == 1:
        return [rows]
    counts = torch.empty(world, dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(counts, torch.tensor([rows], dtype=torch.int64, device=device))
    return [int(count) for count in counts.tolist()]


def gather_rows(x: Tensor, counts: list[int]) -> Tensor:
    """All ranks' rows, one rank after the other, without gradient.

    Args:
        x: `[counts[rank], ...]`, this rank's rows.
        counts: rows of each rank, from `row_counts`.

    Returns:
        `[sum(counts), ...]`, the same on every rank.
    """
    if len(counts) == 1:
        return x
    # Collectives want equal shapes: shorter ranks are padded for the journey.
    longest = max(counts)
    padded = x if x.shape[0] == longest else x.new_zeros(longest, *x.shape[1:])
    if padded is not x:
        padded[: x.shape[0]] = x
    everything = x.new_empty(len(counts) * longest, *x.shape[1:])
    dist.all_gather_into_tensor(everything, padded.contiguous())
    if all(count == longest for count in counts):
        return everything
    return torch.cat(
        [block[:count] for block, count in zip(everything.split(longest), counts, strict=True)]
    )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        everything = gather_rows(x, counts)
        return everything.view_as(x) if everything is x else everything

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rank, _ = rank_and_world()
        start = sum(ctx.counts[:rank])
        return sum_over_ranks(grads[0].clone())[start : start + ctx.counts[rank]], None


def gather_with_gradient(x: Tensor, images: Sequence[int] | None = None) -> Tensor:
    """All ranks' rows, one rank after the other; gradients go back to the rank they came from.

    If every rank computes the loss of the global batch from them, the gradient that DDP averages is
    that loss's gradient.

    Args:
        x: this rank's rows, as many for each of its images.
        images: of each rank, as a batch's `counts` has them; `None` asks the ranks.

    Returns:
        `[rows of all ranks, ...]`, the same on every rank.
    """
    if images is None:
        counts = row_counts(len(x), x.device)
    else:
        each = len(x) // images[rank_and_world()[0]]
        counts = [each * count for count in images]
    gathered: Tensor = _Gather.apply(x, counts)
    return gathered


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, in place, without gradient."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(x)
    return x
