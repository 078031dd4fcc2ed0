"""Groups, peak learning rate, schedule, and LARS against its formula."""

import math
from contextlib import nullcontext
from typing import Any

import lightning as L
import pytest
import torch
from commands import QUIET
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_pl import UserError
from simclr_pl.core.model.optim import (
    OptimizerRecipe,
    Scaling,
    WarmupCosine,
    build_optimizer,
    may_fuse,
    peak_learning_rate,
)
from simclr_pl.core.model.projector import build_projector


def recipe(
    name: str = "sgd",
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
def test_weights_decay_and_biases_and_norms_do_not(name: str) -> None:
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


def decaying(modules: nn.Module) -> set[str]:
    """Names of what decays."""
    names = {parameter: name for name, parameter in modules.named_parameters()}
    groups = build_optimizer(modules, recipe("lars"), 0.1).param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert [group["adapt"] for group in groups] == [True, False]
    return {names[parameter] for parameter in groups[0]["params"]}


SMALL_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "args", "others"),
    [
        ("vit_tiny_patch16_224", SMALL_VIT, {"cls_token", "pos_embed"}),
        (
            "swin_tiny_patch4_window7_224",
            {
                "img_size": 32,
                "window_size": 4,
                "embed_dim": 8,
                "depths": (1, 1),
                "num_heads": (1, 1),
            },
            {"layers.0.blocks.0.attn.relative_position_bias_table"},
        ),
        (
            "resmlp_12_224",
            {"img_size": 32},
            {"blocks.0.norm1.alpha", "blocks.0.norm1.beta", "norm.alpha"},
        ),
        ("resnet10t", {"channels": [8, 8, 8, 8]}, {"layer1.0.bn1.weight"}),
    ],
)
def test_of_timms_networks_weights_decay_alone(
    name: str, args: dict[str, object], others: set[str]
) -> None:
    import timm

    modules = nn.ModuleDict({"encoder": timm.create_model(name, num_classes=0, **args)})
    found = decaying(modules)
    assert {f"encoder.{other}" for other in others} <= {n for n, _ in modules.named_parameters()}
    assert not {f"encoder.{other}" for other in others} & found
    layers = {n for n, m in modules.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert found == {f"{layer}.weight" for layer in layers}


def test_a_weight_of_one_row_is_a_weight() -> None:
    modules = nn.Sequential(nn.Linear(4, 1), nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    assert decaying(modules) == {"0.weight", "1.weight"}


class Table(nn.Module):
    """A module of one's own, with a parameter that isn't to decay."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.matrix = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 4))

    def no_weight_decay(self) -> set[str]:
        return {"table"}


def test_what_modules_name_does_not_decay_wherever_they_are() -> None:
    modules = nn.ModuleDict({"deep": nn.Sequential(nn.Linear(2, 2), Table())})
    assert decaying(modules) == {"deep.0.weight", "deep.1.matrix"}


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
    schedule = WarmupCosine(optimizer, warmup, total)
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


def slope(modules: nn.Module, seed: int) -> None:
    """Gives each parameter a gradient."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in modules.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).double()


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


# One kernel for all parameters -----------------------------------------------------------------


def test_a_cpu_has_plain_optimisers() -> None:
    for name in ("sgd", "adamw"):
        groups = build_optimizer(network(), recipe(name), 0.1, fused=True).param_groups
        assert not any(group["fused"] for group in groups)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_resume_on_a_cpu_is_plain_whatever_the_run_was(name: str) -> None:
    optimizer = build_optimizer(network(), recipe(name), 0.1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True
    optimizer.load_state_dict(state)
    assert [group["fused"] for group in optimizer.param_groups] == [False, False]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimisers_take_the_same_steps(name: str) -> None:
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


FUSED: dict[tuple[str, float | None], bool] = {
    ("32-true", None): True,
    ("32-true", 1.0): True,
    ("bf16-true", 1.0): True,
    ("bf16-mixed", None): True,
    ("bf16-mixed", 0.0): True,
    ("bf16-mixed", 1.0): False,
    ("16-mixed", None): False,  # the scaler of float16
    ("16-mixed", 1.0): False,
}


@pytest.mark.parametrize(("precision", "clip"), FUSED)
def test_mixed_precision_that_scales_or_clips_wants_plain_optimisers(
    precision: str, clip: float | None
) -> None:
    trainer = L.Trainer(**QUIET, gradient_clip_val=clip)
    trainer.strategy.precision_plugin.precision = precision  # a CPU refuses some by itself
    assert may_fuse(trainer) is FUSED[precision, clip]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_lightning_clips_under_mixed_precision_what_is_not_fused(name: str) -> None:
    """Its own rule, which `may_fuse` is about: a fused one dies in step 1."""
    kind = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    for fused in (False, True):
        optimizer = kind(nn.Linear(2, 2).parameters(), lr=0.1, fused=fused)
        plugin = MixedPrecision("bf16-mixed", "cpu")
        with pytest.raises(RuntimeError, match="fused") if fused else nullcontext():
            plugin.clip_gradients(optimizer, 1.0)


# Begun on one device and resumed on another, on a pretended GPU -----------------------------------


def device_of_steps(saved: dict[str, Any], name: str, *, fused: bool) -> set[str]:
    """Where an optimiser on a GPU has its counts, having loaded that (AdamW: and taken a step)."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda:0"):
        modules = nn.Linear(3, 2)
        optimizer = build_optimizer(modules, recipe(name), 0.1, fused=fused)
        optimizer.load_state_dict(saved)
        assert {group.get("fused") for group in optimizer.param_groups} <= {fused, None}
        for parameter in modules.parameters():
            parameter.grad = torch.empty_like(parameter)
        if fused and name == "adamw":  # of others torch has none that is pretended
            optimizer.step()
        found = [pair for state in optimizer.state.values() for pair in state.items()]
        assert {str(value.device) for key, value in found if key != "step"} == {"cuda:0"}
        return {str(value.device) for key, value in found if key == "step"}


def begun(name: str, *, fused: bool | None) -> dict[str, Any]:
    """The state of an optimiser behind its first step, on a CPU."""
    modules = nn.Linear(3, 2)
    optimizer = build_optimizer(modules, recipe(name), 0.1)
    for parameter in modules.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()
    for group in saved["param_groups"] if name != "lars" else ():
        group["fused"] = fused
    return saved


@pytest.mark.parametrize("saved_fused", [None, False, True])
def test_adamw_resumed_on_a_gpu_counts_its_steps_where_its_kernel_does(
    saved_fused: bool | None,
) -> None:
    saved = begun("adamw", fused=saved_fused)
    assert device_of_steps(saved, "adamw", fused=True) == {"cuda:0"}
    # Not fused it counts on the host: a GPU would be waited for in each step.
    assert device_of_steps(saved, "adamw", fused=False) == {"cpu"}


@pytest.mark.parametrize("saved_fused", [False, True])
@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_other_optimisers_go_on_on_a_gpu(name: str, saved_fused: bool) -> None:
    assert device_of_steps(begun(name, fused=saved_fused), name, fused=True) == set()


def test_a_fused_run_goes_on_on_a_cpu_to_the_bit() -> None:
    ends = []
    for saved_fused in (False, True):
        modules = nn.Linear(3, 2)
        modules.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
        optimizer = build_optimizer(modules, recipe("adamw"), 0.1)
        optimizer.load_state_dict(begun("adamw", fused=saved_fused))
        for parameter in modules.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in modules.parameters()]))
    assert ends[0].equal(ends[1])


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
    ],
)
def test_values_that_no_run_could_mean_are_refused(bad: OptimizerRecipe, sentence: str) -> None:
    with pytest.raises(UserError, match=f"model.{sentence}"):
        bad.check()


def test_usual_values_are_accepted() -> None:
    recipe("lars", weight_decay=1e-6).check()
    recipe("lars", weight_decay=0).check()
    recipe("sgd", weight_decay=0, momentum=0, warmup_epochs=0).check()
