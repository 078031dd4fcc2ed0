"""Ranks: who am I, which rows are mine, and what all of us hold together.

All of it works with one process too, where it does nothing, and with ranks of different sizes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
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


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, in place, without gradient."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(x)
    return x


class _NormaliseOverRanks(torch.autograd.Function):
    """Batch norm by the statistics of all ranks' rows; torch's own kernels do what is each rank's.

    A collective forward and one backward: ranks' means and variances are put together as those of
    parts of a sample are (Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm"), without
    the cancellation of E[x²] - E[x]².
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = x.new_full((1,), x.numel() // x.shape[1])
        kernel: Any = torch.native_batch_norm
        _, mean, inverse = kernel(x, None, None, None, None, True, 0.0, 0.0)
        # Of values that are all the same it has 0 as the inverse deviation.
        variance = torch.where(inverse > 0, inverse.pow(-2), 0)
        mine = torch.cat([count, mean, variance])
        every = gather_rows(mine[None], [1] * rank_and_world()[1])
        counts, means, variances = every.split([1, *[x.shape[1]] * 2], 1)
        rows = counts.sum()
        share = counts / rows
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        ctx.save_for_backward(x, weight, mean, variance, rows)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, rows)
        normalised = nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        return normalised, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, rows = ctx.saved_tensors
        # As if the statistics were constants; then what they owe to each row of each rank.
        by_value, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        of_bias, of_weight = sum_over_ranks(torch.cat([by_bias, by_weight])).chunk(2)
        shape = [1, -1] + [1] * (x.dim() - 2)
        inverse = (variance + ctx.eps).rsqrt()
        each = -weight * inverse / rows
        by_value.addcmul_(x - mean.view(shape), (each * inverse * of_weight).view(shape))
        by_value.add_((each * of_bias).view(shape))
        return by_value, by_weight, by_bias, None


_TIMMS = ("drop", "act")
"""Modules that timm's batch norms bring along, and apply behind themselves in this order."""


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all ranks, where torch has none: on the CPU.

    On CUDA `torch.nn.SyncBatchNorm` does this. Ranks may hold different numbers of rows. Names of
    parameters and buffers are those of `torch.nn.BatchNorm2d`, and so are the numbers that one
    process gets from the concatenated batch (Ioffe & Szegedy 2015; running variance unbiased).
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's own name
        if input.dim() < 2:
            raise ValueError(f"batch norm wants at least 2 dimensions, not {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Normalises `[B, C, ...]` by all ranks' statistics (in eval mode: the running ones)."""
        if not self.training or rank_and_world()[1] == 1:
            output: Tensor = super().forward(input)
        else:
            output = self._normalise(input)
        for name in _TIMMS:
            output = getattr(self, name)(output) if hasattr(self, name) else output
        return output

    def _normalise(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        # Under autocast activations are bfloat16, which cannot even count: statistics are float32.
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        scale: tuple[Tensor, Tensor] = (self.weight, self.bias)
        if not self.affine:
            scale = x.new_ones(self.num_features), x.new_zeros(self.num_features)
        normalised, mean, variance, rows = _NormaliseOverRanks.apply(x, *scale, self.eps)
        self._update_running(mean, variance * rows / (rows - 1).clamp(min=1))
        output: Tensor = normalised.to(input.dtype)
        return output

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # torch's cumulative average
            momentum = 1.0 / float(self.num_batches_tracked or 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def globalise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every batch norm in `module` by one over all ranks; parameters keep their names."""
    if device.type == "cuda":
        if any(isinstance(m, nn.SyncBatchNorm) for m in module.modules()):
            # Converted before: timm's conversion of its own result would drop the activations.
            return module
        # torch's own conversion would lose the activation that timm's batch norms bring along.
        from timm.layers.norm_act import convert_sync_batchnorm  # late: it takes seconds

        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) is not GlobalBatchNorm:
        twin = GlobalBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        # The same parameter and buffer objects: nothing that refers to them notices.
        twin.weight, twin.bias = module.weight, module.bias
        twin.running_mean, twin.running_var = module.running_mean, module.running_var
        twin.num_batches_tracked = module.num_batches_tracked
        for name in _TIMMS:
            if hasattr(module, name):
                setattr(twin, name, getattr(module, name))
        return twin.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, globalise_batch_norm(child, device))
    return module
