"""Trainers that would train something else, or lose what they train, are refused in a sentence."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from commands import QUICK, QUIET, fit, run
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from run_files import rows

from simclr_pl import ContrastiveDataModule, SimCLR, UserError


def trainer(**options: Any) -> L.Trainer:
    few = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0}
    return L.Trainer(**(QUIET | few | options))


def simclr() -> SimCLR:
    return SimCLR(optimizer="sgd", warmup_epochs=0)


class _Unread(ContrastiveDataModule):
    """Fails the test where it is asked for its data."""

    def prepare_data(self) -> None:
        raise AssertionError("the data was read first")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "accumulation": ({"accumulate_grad_batches": 2}, "accumulate_grad_batches .*micro_batch_size"),
    "accumulation later": (
        {"callbacks": GradientAccumulationScheduler({4: 2})},
        "GradientAccumulationScheduler .*data.batch_size.*model.micro_batch_size",
    ),
    "averaging with a schedule of its own": (
        {"callbacks": StochasticWeightAveraging(1e-2)},
        "StochasticWeightAveraging .*cosine.*leave it out",
    ),
    "another learning rate": (
        {"callbacks": LearningRateFinder()},
        "LearningRateFinder .*model.learning_rate",
    ),
    "another batch": ({"callbacks": BatchSizeFinder()}, "BatchSizeFinder .*bench"),
    "another batch norm": (
        {"sync_batchnorm": True, "strategy": "ddp"},
        "sync_batchnorm.*model.global_batch_norm",
    ),
    "no batches": ({"limit_train_batches": 0}, "limit_train_batches is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_trainer_that_would_train_something_else_is_refused_before_data_is_read(
    case: str,
) -> None:
    options, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        trainer(**options).fit(simclr(), _Unread(batch_size=32))


def test_the_tuner_is_refused_with_the_callbacks_that_it_uses() -> None:
    with pytest.raises(UserError, match="LearningRateFinder"):
        Tuner(trainer()).lr_find(simclr(), datamodule=_Unread(batch_size=32))


def test_a_callback_that_makes_a_step_one_of_several_batches_is_refused_when_it_does() -> None:
    class Sneaky(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.accumulate_grad_batches = 2

    with pytest.raises(UserError, match="accumulate_grad_batches"):
        trainer(callbacks=Sneaky()).fit(simclr(), ContrastiveDataModule(batch_size=32))


def test_a_schedule_of_single_batches_trains() -> None:
    single = trainer(callbacks=GradientAccumulationScheduler({0: 1}))
    single.fit(simclr(), ContrastiveDataModule(batch_size=32))
    assert single.global_step == 2


# Processes that are forked or spawned -------------------------------------------------------------


@pytest.mark.processes
def test_lightnings_choice_in_a_notebook_with_several_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = "lightning.pytorch.trainer.connectors.accelerator_connector"
    monkeypatch.setattr(f"{connector}._IS_INTERACTIVE", True)
    with pytest.raises(Exception, match=r"UserError: this Trainer.*fork.*Trainer\(devices=1\)"):
        trainer(devices=2).fit(simclr(), _Unread(batch_size=32))


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn", "ddp_notebook"])
@pytest.mark.parametrize("command", ["fit", "finetune"])
def test_commands_refuse_processes_that_are_forked_or_spawned_and_leave_nothing_behind(
    command: str, strategy: str, source: Path, tmp_path: Path
) -> None:
    where = ("--trainer.devices", "2", "--trainer.strategy", strategy)
    new = tmp_path / "new"
    pretrained = ("--run_dir", source, "--label_fraction", "0.1", "--out", new, "--wandb", "off")
    options = {"fit": (*QUICK, "--run_dir", new), "finetune": pretrained}
    sentence = run(command, *options[command], "--trainer.accelerator", "cpu", *where).sentence
    for word in ("devices=1", "python -m simclr_pl", strategy):
        assert word in sentence, sentence
    assert not new.exists()


def test_an_old_run_with_a_callback_that_is_refused_now_is_scored(
    finished: Path, tmp_path: Path
) -> None:
    config = finished / "config.yaml"
    averaged = "callbacks: [{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.1}}]"
    config.write_text(config.read_text().replace("callbacks: null", averaged))
    assert averaged in config.read_text()
    assert run("validate", "--run_dir", finished).code == 0
    again = run("fit", "--config", config, "--run_dir", tmp_path / "again")
    assert "StochasticWeightAveraging" in again.sentence
    assert not (tmp_path / "again").exists()


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
@pytest.mark.processes
def test_averaged_weights_leave_the_training_as_it_is(source: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", "--trainer.callbacks", '[{"class_path": "EMAWeightAveraging"}]')
    averaged, plain = ([r["train/loss"] for r in rows(d)] for d in (tmp_path / "run", source))
    assert averaged == plain
