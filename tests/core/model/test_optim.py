"""Groups, peak learning rate, schedule, and what is refused."""

import math

import pytest
import torch
from optimizers import Table, network, recipe
from torch import nn

from simclr_pl import UserError
from simclr_pl.core.model.optim import (
    OptimizerSettings,
    WarmupCosine,
    build_optimizer,
    peak_learning_rate,
)

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
def test_values_that_no_run_could_mean_are_refused(bad: OptimizerSettings, sentence: str) -> None:
    with pytest.raises(UserError, match=f"model.{sentence}"):
        bad.check()


def test_usual_values_are_accepted() -> None:
    recipe("lars", weight_decay=1e-6).check()
    recipe("lars", weight_decay=0).check()
    recipe("sgd", weight_decay=0, momentum=0, warmup_epochs=0).check()
