"""LARS (You et al. 2017), with the rate inside the momentum, as SimCLR's authors have it."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from simclr_pl.core.distributed import rank_and_world

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
        groups: of parameters, each with its `weight_decay`, and `adapt` false for those that are
            no weights.
        lr: the learning rate.
        momentum: m.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9) -> None:
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adapt": True}
        )
        self.register_load_state_dict_pre_hook(_from_timm)

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


def _from_timm(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """The state of a run that was begun with timm's LARS: its momentum, times its rate.

    The first step then is as long as timm's would have been; those behind it are LARS's.
    """
    if not any("momentum_buffer" in own for own in state["state"].values()):
        return None
    if rank_and_world()[0] == 0:
        sys.stdout.write(
            "This run was begun with timm's LARS, which keeps the learning rate outside the "
            "momentum: from here on it is inside, as in the paper and its authors' code\n"
        )
    rates = {place: group["lr"] for group in state["param_groups"] for place in group["params"]}
    velocities = {
        place: {"velocity": own["momentum_buffer"] * rates[place]}
        for place, own in state["state"].items()
    }
    groups = [
        {**{name: saved.get(name, value) for name, value in own.items()}, "params": saved["params"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {"state": velocities, "param_groups": groups}
