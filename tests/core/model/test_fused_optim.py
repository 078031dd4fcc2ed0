"""Fused optimizers: where they may be, and runs that begin on one device and go on on another."""

from contextlib import nullcontext
from typing import Any

import lightning as L
import pytest
import torch
from commands import QUIET
from lightning.pytorch.plugins import MixedPrecision
from optimizers import network, recipe
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_pl.core.model.optim import build_optimizer, may_fuse

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
