"""LARS (You et al. 2017), with the rate inside the momentum, as SimCLR's authors have it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

TRUST = 0.001
"""The trust coefficient (the authors' `eeta`)."""


class Lars(Optimizer):
    """SGD with momentum whose steps are as long, relative to each weight, as all others'.

    For a weight w with gradient g, learning rate r, momentum m and weight decay d:

        g' = g + d w
        v  = m v + r g' (TRUST |w| / |g'|)
        w  = w - v

    The factor in brackets is 1 where a norm is 0, and in groups whose `adapt` is false. With the
    rate inside the momentum, as in the paper and the authors' code, a step's length is that step's
    rate's, whatever the schedule does later; timm's LARS multiplies the whole momentum by the
    newest rate, which makes steps of a warm-up up to 1.6 times longer.

    Source: google-research/simclr `lars_optimizer.py` with its default `classic_momentum`; You et
    al. 2017, algorithm 1 (whose denominator is |g| + d |w|).

    Args:
        params: weights, or groups of parameters, with `adapt` false for those that are none.
        lr: the learning rate.
        momentum: m.
        weight_decay: d.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; on CUDA a kernel works on the list of all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _together([p for p in group["params"] if p.grad is not None]):
                self._step(weights, group)
        return loss

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        grads = [w.grad for w in weights if w.grad is not None]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            grads = list(torch._foreach_mul(grads, _trust(weights, grads).unbind()))
        for weight in weights:
            if "velocity" not in self.state[weight]:
                self.state[weight]["velocity"] = torch.zeros_like(weight)
        velocities = [self.state[weight]["velocity"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, grads, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)


def _together(weights: list[Tensor]) -> list[list[Tensor]]:
    """All at once; on a CPU one after the other, where the memory of the last serves the next."""
    if any(weight.is_cpu for weight in weights):
        return [[weight] for weight in weights]
    return [weights] if weights else []


def _trust(weights: list[Tensor], grads: list[Tensor]) -> Tensor:
    """Of each weight, `[weights]`."""
    long, steep = (torch.stack(list(torch._foreach_norm(some))) for some in (weights, grads))
    return torch.where((long > 0) & (steep > 0), TRUST * long / steep, 1.0)
