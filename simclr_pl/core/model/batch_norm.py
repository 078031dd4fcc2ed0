"""Batch norm over the images of all ranks, as one device would compute it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simclr_pl.core.distributed import gather_rows, rank_and_world, sum_over_ranks
from simclr_pl.core.lightning_internals import AnyBatchNorm


class _NormaliseOverRanks(torch.autograd.Function):
    """Returns the normalised `[B, C, ...]`, and the mean, variance and row count used.

    A collective forward and one backward: ranks' means and variances are put together as those of
    parts of a sample are (Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm"), without
    the cancellation of E[x²] - E[x]². Few passes over memory, which autograd would make more of.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        count = x.new_full((1,), x.numel() // x.shape[1])
        own = x.sum(axes) / count
        centred = x - _along(own, x)
        mine = torch.cat([count, own, centred.square().sum(axes) / count])
        every = gather_rows(mine[None], [1] * rank_and_world()[1])
        counts, means, variances = every.split([1, *[x.shape[1]] * 2], 1)
        rows = counts.sum()
        share = counts / rows
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        inverse, shift = torch.rsqrt(variance + eps), own - mean
        scale = weight * inverse
        ctx.save_for_backward(centred, shift, scale, inverse, rows)
        ctx.mark_non_differentiable(mean, variance, rows)
        y = torch.addcmul(_along(bias + shift * scale, x), centred, _along(scale, x))
        return y, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, shift, scale, inverse, rows = ctx.saved_tensors
        grad = grads[0]
        axes = [axis for axis in range(grad.dim()) if axis != 1]
        by_bias = grad.sum(axes)
        by_value = (grad * centred).sum(axes) + shift * by_bias
        of_bias, of_value = sum_over_ranks(torch.cat([by_bias, by_value])).chunk(2)
        # What this rank's rows do to all ranks' means and variances comes back to them.
        slope = -scale * inverse.square() * of_value / rows
        level = shift * slope - scale * of_bias / rows
        by_x = torch.addcmul(_along(level, grad), grad, _along(scale, grad))
        by_x.addcmul_(centred, _along(slope, grad))
        return by_x, by_value * inverse, by_bias, None


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """A number a channel `[C]`, to be combined with `[B, C, ...]`."""
    return channels.view(1, -1, *[1] * (x.dim() - 2))


_TIMMS = ("drop", "act")
"""Modules that timm's batch norms bring along, and apply behind themselves in this order."""


class GlobalBatchNorm(AnyBatchNorm):
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
    if isinstance(module, AnyBatchNorm) and type(module) is not GlobalBatchNorm:
        # The same parameter and buffer objects: nothing that refers to them notices.
        twin = GlobalBatchNorm(module.num_features)
        vars(twin).update(vars(module))
        return twin
    for name, child in module.named_children():
        setattr(module, name, globalise_batch_norm(child, device))
    return module
