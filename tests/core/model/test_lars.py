"""LARS against its formula, over a whole schedule and a resume."""

import pytest
import torch
from optimizers import network, recipe, slope
from torch import Tensor

from simclr_pl.core.model.optim import WarmupCosine, build_optimizer


def lars_literally(
    weights: Tensor, grads: list[Tensor], rates: list[float], decay: float
) -> Tensor:
    """As google-research/simclr `lars_optimizer.py`, with momentum 0.9 and eeta 0.001."""
    w, v = weights.clone(), torch.zeros_like(weights)
    for grad, rate in zip(grads, rates, strict=True):
        g = grad + decay * w
        trust = 0.001 * w.norm() / g.norm() if w.norm() > 0 and g.norm() > 0 else 1.0
        v = 0.9 * v + rate * trust * g
        w = w - v
    return w


def momentum_literally(weights: Tensor, grads: list[Tensor], rates: list[float]) -> Tensor:
    w, v = weights.clone(), torch.zeros_like(weights)
    for grad, rate in zip(grads, rates, strict=True):
        v = 0.9 * v + rate * grad
        w = w - v
    return w


@pytest.mark.parametrize("decay", [0.01, 0.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lars_is_the_authors_over_a_whole_schedule(
    decay: float, layout: torch.memory_format
) -> None:
    """Warm-up and cosine: at a constant rate, the rate outside the momentum would be as good."""
    modules = network().to(memory_format=layout)
    modules[1][0][0].weight.data.zero_()  # without a length there is nothing to adapt
    optimizer = build_optimizer(modules, recipe("lars", weight_decay=decay), 2.0)
    schedule = WarmupCosine(optimizer, 3, 9)
    start = {name: p.detach().clone() for name, p in modules.named_parameters()}
    grads: dict[str, list[Tensor]] = {name: [] for name in start}
    rates = []
    torch.manual_seed(1)
    for step in range(9):
        for name, parameter in modules.named_parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
                if step == 4 and name == "0.0.weight":
                    parameter.grad.zero_()  # nor, unless it decays, without a slope
                grads[name].append(parameter.grad.clone())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert len(set(rates)) == 8  # the peak comes twice
    for name, parameter in modules.named_parameters():
        if parameter.ndim > 1:
            expected = lars_literally(start[name], grads[name], rates, decay)
        elif parameter.requires_grad:
            expected = momentum_literally(start[name], grads[name], rates)
        else:
            expected = start[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)
        assert parameter.requires_grad != parameter.detach().equal(start[name])


def test_a_resumed_lars_goes_on_as_if_nothing_had_been() -> None:
    whole, half, resumed = network(), network(), network()
    of_whole, of_half, of_resumed = (
        build_optimizer(each, recipe("lars"), 2.0) for each in (whole, half, resumed)
    )
    for step in range(4):
        slope(whole, step)
        of_whole.step()
        if step < 2:
            slope(half, step)
            of_half.step()
    resumed.load_state_dict(half.state_dict())
    of_resumed.load_state_dict(of_half.state_dict())
    for step in (2, 3):
        slope(resumed, step)
        of_resumed.step()
    assert all(a.equal(b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
