"""States of optimisers and recipes that older versions saved are brought into today's form."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from commands import QUICK, QUIET, fit, run
from optimizers import Table, network, slope
from timm.optim.lars import Lars as TimmsLars
from torch import nn

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.core.model.optim import OptimizerSettings, build_optimizer
from simclr_pl.run.older_runs import OlderRuns, from_timm, regroup


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_run_of_before_whose_tables_decayed_is_resumed(name: str) -> None:
    """Its groups were vectors and all else: each parameter gets its own momentum back."""
    modules = nn.Sequential(nn.Linear(2, 3), Table(), nn.BatchNorm1d(3)).double()
    now = build_optimizer(modules, OptimizerSettings(name, 0.3, "linear", 0.01, 0.9, 0), 0.1)
    assert [len(group["params"]) for group in now.param_groups] == [2, 4]
    before = build_optimizer(modules, OptimizerSettings(name, 0.3, "linear", 0.01, 0.9, 0), 0.1)
    parameters = list(modules.parameters())
    for group, wanted in zip(before.param_groups, (True, False), strict=True):
        group["params"] = [p for p in parameters if (p.ndim > 1) == wanted]
    slope(modules, 0)
    before.step()
    key = "momentum_buffer" if name == "sgd" else "exp_avg"
    expected = {p: before.state[p][key].clone() for p in parameters}
    regroup(now, modules)
    now.load_state_dict(before.state_dict())
    assert [len(group["params"]) for group in now.param_groups] == [2, 4]
    assert all(now.state[p][key].equal(expected[p]) for p in parameters)


def test_a_run_of_before_with_timms_lars_goes_on_at_its_pace_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its first step carries on the momentum as timm's would have."""
    modules = network()
    ours = build_optimizer(modules, OptimizerSettings("lars", 0.3, "linear", 1e-6, 0.9, 0), 1.0)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in ours.param_groups
    ]
    theirs = TimmsLars(groups, lr=2.0, momentum=0.9)
    for step in range(2):
        slope(modules, step)
        theirs.step()
    start = {name: p.detach().clone() for name, p in modules.named_parameters()}
    ours.register_load_state_dict_pre_hook(from_timm)
    ours.load_state_dict(theirs.state_dict())
    assert "begun with timm's LARS, " in capsys.readouterr().out
    assert [group["adapt"] for group in ours.param_groups] == [True, False]
    assert {group["lr"] for group in ours.param_groups} == {2.0}
    slope(modules, 2)
    theirs.step()
    expected = {name: p.detach().clone() for name, p in modules.named_parameters()}
    for name, parameter in modules.named_parameters():
        parameter.data.copy_(start[name])
    ours.step()
    for name, parameter in modules.named_parameters():
        # You et al.'s denominator, which timm has, is a little larger than the authors'.
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-8, atol=1e-8)
        assert parameter.requires_grad != parameter.detach().equal(start[name])


def test_a_checkpoint_with_timms_momentum_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(epochs: int, ckpt_path: Path | None = None) -> L.Trainer:
        model = SimCLR("mlp", optimizer="lars", warmup_epochs=0, seed=0)
        options: dict[str, Any] = QUIET | {"max_epochs": epochs, "limit_train_batches": 1}
        trainer = L.Trainer(**options, callbacks=[OlderRuns()])
        data = ContrastiveDataModule("digits", batch_size=64, seed=0)
        trainer.fit(model, data, ckpt_path=ckpt_path)
        return trainer

    path = tmp_path / "old.ckpt"
    fit(1).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    (states,) = checkpoint["optimizer_states"]
    velocities = {place: own.pop("velocity") for place, own in states["state"].items()}
    for place, velocity in velocities.items():
        states["state"][place]["momentum_buffer"] = velocity / states["param_groups"][0]["lr"]
    torch.save(checkpoint, path)
    trainer = fit(2, path)
    assert "begun with timm's LARS, " in capsys.readouterr().out
    state = trainer.optimizers[0].state
    assert len(state) == len(velocities)
    assert all(own.keys() == {"velocity"} for own in state.values())


def test_a_run_of_before_whose_grayscale_was_the_default_is_resumed(tmp_path: Path) -> None:
    """It was 0.2 whatever the bands; today's default is said as null, and 0.2 of RGB."""
    fit(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["data"]["grayscale"] is None
    config["data"].pop("range", None)
    for before, code in ((0.3, 2), (0.2, 0)):
        config["data"]["grayscale"] = before
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = run("fit", *QUICK, "--run_dir", tmp_path, "--resume")
        assert done.code == code, done
        assert ("data.grayscale was 0.3" in done.err) == bool(code)
