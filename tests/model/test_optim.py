"""Groups, peak learning rate, schedule, and LARS against its formula."""

import math

import pytest
import torch
from torch import Tensor, nn

from simclr_pl import UserError
from simclr_pl.model.optim import (
    OptimizerName,
    OptimizerRecipe,
    Scaling,
    build_optimizer,
    may_fuse,
    peak_learning_rate,
    warmup_cosine,
)
from simclr_pl.model.projector import build_projector


def recipe(
    name: OptimizerName = "sgd",
    learning_rate: float = 0.3,
    scaling: Scaling = "linear",
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    warmup_epochs: float = 10,
) -> OptimizerRecipe:
    return OptimizerRecipe(name, learning_rate, scaling, weight_decay, momentum, warmup_epochs)


def network() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    return nn.Sequential(encoder, build_projector(4, 2, None, 3)).double()


# Groups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_weights_decay_and_biases_and_norms_do_not(name: OptimizerName) -> None:
    modules = network()
    names = {parameter: name for name, parameter in modules.named_parameters()}
    optimizer = build_optimizer(modules, recipe(name, weight_decay=0.05), 0.1)
    groups = {
        group["weight_decay"]: {names[parameter] for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    weights = {"0.0.weight", "0.3.weight", "1.0.0.weight", "1.1.0.weight"}
    frozen = "1.1.1.bias"  # the projector's last
    assert groups == {0.05: weights, 0.0: set(names.values()) - weights - {frozen}}
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


def test_momentum_is_that_of_sgd_and_lars_and_the_first_beta_of_adamw() -> None:
    for name in ("sgd", "lars"):
        groups = build_optimizer(network(), recipe(name, momentum=0.7), 0.1).param_groups
        assert {group["momentum"] for group in groups} == {0.7}
    groups = build_optimizer(network(), recipe("adamw", momentum=0.7), 0.1).param_groups
    assert {group["betas"] for group in groups} == {(0.7, 0.999)}


# Peak --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [32, 256, 1000, 4096])
def test_peaks_are_the_papers(batch: int) -> None:
    """Section 2.2: 0.3 x batch / 256. Appendix B.1: 0.075 x sqrt(batch)."""
    linear = peak_learning_rate(recipe(learning_rate=0.3, scaling="linear"), batch)
    assert linear == pytest.approx(0.3 * batch / 256, rel=1e-12)
    root = peak_learning_rate(recipe(learning_rate=1.2, scaling="sqrt"), batch)
    assert root == pytest.approx(0.075 * math.sqrt(batch), rel=1e-12)
    assert peak_learning_rate(recipe(learning_rate=0.7, scaling="none"), batch) == 0.7


# Schedule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "total"), [(3, 10), (0, 4), (1, 2), (5, 5), (7, 5)])
def test_warm_up_is_linear_and_then_a_cosine_goes_to_zero(warmup: int, total: int) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [parameter]}], lr=2.0)
    schedule = warmup_cosine(optimizer, warmup, total)
    for step in range(total + 3):
        if step < warmup:
            expected = 2.0 * (step + 1) / warmup
        else:
            progress = min((step - warmup) / max(total - warmup, 1), 1)
            expected = 2.0 * (1 + math.cos(math.pi * progress)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-15), step
        optimizer.step()
        schedule.step()
    if warmup < total:
        assert optimizer.param_groups[0]["lr"] == 0


# LARS --------------------------------------------------------------------------------------------


def lars_literally(weights: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """You et al. 2017, algorithm 1, with momentum 0.9 and trust coefficient 0.001.

    `decay` is beta, `local` is lambda. (timm adds 1e-8 to the denominator.)
    """
    w, v = weights.clone(), torch.zeros_like(weights)
    for g in grads:
        local = 0.001 * w.norm() / (g.norm() + decay * w.norm() + 1e-8)
        v = 0.9 * v + lr * local * (g + decay * w)
        w = w - v
    return w


def sgd_literally(weights: Tensor, grads: list[Tensor], lr: float) -> Tensor:
    w, v = weights.clone(), torch.zeros_like(weights)
    for g in grads:
        v = 0.9 * v + lr * g
        w = w - v
    return w


def test_lars_is_the_papers_on_weights_and_plain_sgd_on_biases_and_norms() -> None:
    modules = network()
    optimizer = build_optimizer(modules, recipe("lars", weight_decay=0.01), 2.0)
    start = {name: p.detach().clone() for name, p in modules.named_parameters()}
    grads: dict[str, list[Tensor]] = {name: [] for name in start}
    torch.manual_seed(1)
    for _ in range(3):
        for name, parameter in modules.named_parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
                grads[name].append(parameter.grad.clone())
        optimizer.step()
    for name, parameter in modules.named_parameters():
        if parameter.ndim > 1:
            expected = lars_literally(start[name], grads[name], 2.0, 0.01)
        else:
            expected = sgd_literally(start[name], grads[name], 2.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)
        assert parameter.requires_grad != parameter.detach().equal(start[name])


# One kernel for all parameters -----------------------------------------------------------------


def test_a_cpu_has_plain_optimisers() -> None:
    for name in ("sgd", "adamw"):
        groups = build_optimizer(network(), recipe(name), 0.1, fused=True).param_groups
        assert not any(group["fused"] for group in groups)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_resume_on_a_cpu_is_plain_whatever_the_run_was(name: OptimizerName) -> None:
    optimizer = build_optimizer(network(), recipe(name), 0.1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True
    optimizer.load_state_dict(state)
    assert [group["fused"] for group in optimizer.param_groups] == [False, False]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimisers_take_the_same_steps(name: OptimizerName) -> None:
    ends = []
    for fused in (False, True):
        modules = network().cuda()
        optimizer = build_optimizer(modules, recipe(name), 0.1, fused=fused)
        assert all(group["fused"] is fused for group in optimizer.param_groups)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            for parameter in modules.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient.to(parameter)
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in modules.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-13)


def test_lars_takes_the_same_steps_on_lists_of_parameters() -> None:
    """As it does on CUDA."""
    ends = []
    for foreach in (False, True):
        modules = network()
        optimizer = build_optimizer(modules, recipe("lars"), 2.0)
        for group in optimizer.param_groups:
            assert group["foreach"] is None  # chosen by the device
            group["foreach"] = foreach
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            for parameter in modules.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).double()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in modules.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-13)


def test_a_scaler_of_float16_wants_plain_optimisers() -> None:
    assert not may_fuse("16-mixed")
    assert may_fuse("bf16-mixed")
    assert may_fuse("32-true")


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (recipe(learning_rate=0), "learning_rate is 0, but must be above 0"),
        (recipe(learning_rate=math.nan), "learning_rate is nan, but must be above 0"),
        (recipe(weight_decay=-1e-6), "weight_decay is -1e-06, but must be 0 or more"),
        (recipe(weight_decay=math.nan), "weight_decay is nan, but must be 0 or more"),
        (recipe(momentum=1.0), "momentum is 1.0, but must be at least 0 and below 1"),
        (recipe(momentum=-0.1), "momentum is -0.1, but must be at least 0 and below 1"),
        (recipe(warmup_epochs=-1), "warmup_epochs is -1, but must be 0 or more"),
        (recipe(warmup_epochs=math.nan), "warmup_epochs is nan, but must be 0 or more"),
        (recipe("adam"), "optimizer is 'adam', but must be one of sgd, adamw, lars"),
        (recipe(scaling="root"), "lr_scaling is 'root', but must be one of linear, sqrt, none"),
        (recipe("lars", weight_decay=0), "weight_decay 0 would turn LARS off"),
    ],
)
def test_values_that_no_run_could_mean_are_refused(bad: OptimizerRecipe, sentence: str) -> None:
    with pytest.raises(UserError, match=f"model.{sentence}"):
        bad.check()


def test_usual_values_are_accepted() -> None:
    recipe("lars", weight_decay=1e-6).check()
    recipe("sgd", weight_decay=0, momentum=0, warmup_epochs=0).check()
