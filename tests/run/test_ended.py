"""Runs that end before their schedule does: what they have at their end, say, and go on from."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from commands import NARROW, QUICK, QUIET, fit, run
from lightning.pytorch.callbacks import EarlyStopping
from run_files import checkpoint, rows
from stopping import differences

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.run.checkpoints import SaveCheckpoint
from simclr_pl.run.metrics import read_metrics

RECIPE = (
    *("--trainer.limit_train_batches", 4, "--trainer.max_epochs", 3),
    *("--checkpoint.every_n_epochs", 10, "--knn.every_n_epochs", 10),
)
"""Three epochs of four steps, with kNN and a checkpoint at the end alone."""

EARLY = "{class_path: EarlyStopping, init_args: {monitor: val/loss, stopping_threshold: 100.0}}"
"""Ends behind the first validation, whatever that says."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody ended."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    fit(directory, *RECIPE)
    return directory


def ends(step: int) -> str:
    return f"--trainer.callbacks+={{class_path: recording.Ends, init_args: {{step: {step}}}}}"


def states(directory: Path) -> dict[str, Any]:
    """The last checkpoint, but for what a callback that has gone has left in it."""
    content = checkpoint(directory)
    content["callbacks"] = {
        name: state for name, state in content["callbacks"].items() if "EarlyStopping" not in name
    }
    return content


def check_goes_on(directory: Path, whole: Path, *args: object) -> None:
    """To the bit where the whole run has got, with every number it has logged."""
    fit(directory, *RECIPE, *args, "--resume")
    assert differences(states(directory), states(whole)) == []
    mine = rows(directory)
    assert [row["step"] for row in mine] == [row["step"] for row in rows(whole)]
    for row, other in zip(mine, rows(whole), strict=True):
        assert row == row | other


@pytest.mark.parametrize("step", [1, 6, 8])
@pytest.mark.long
def test_a_stop_has_all_that_an_end_has_and_goes_on(tmp_path: Path, whole: Path, step: int) -> None:
    done = fit(tmp_path / "run", *RECIPE, ends(step))
    last = rows(tmp_path / "run")[-1]
    assert last["step"] == str(step - 1)
    assert last.keys() >= {"val/loss", "probe/val_top1", "knn/val_top1", "health/rankme"}
    assert checkpoint(tmp_path / "run")["global_step"] == step
    assert (
        "ended by trainer.should_stop, which a callback or the model has set at step "
        f"{step}, in epoch {-(-step // 4)}: saved in {tmp_path}/run/checkpoints/last.ckpt; the "
        f"same command with --resume --run_dir {tmp_path}/run goes on\n"
    ) in done.out
    check_goes_on(tmp_path / "run", whole)


@pytest.mark.long
def test_a_stop_without_validation_goes_on_too(tmp_path: Path) -> None:
    without = ("--trainer.limit_val_batches", 0)
    fit(tmp_path / "run", *RECIPE, *without, ends(6))
    assert checkpoint(tmp_path / "run")["global_step"] == 6
    fit(tmp_path / "whole", *RECIPE, *without)
    check_goes_on(tmp_path / "run", tmp_path / "whole", *without)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.long
def test_early_stopping_has_all_that_an_end_has_and_goes_on(
    tmp_path: Path, whole: Path, every: int
) -> None:
    often = ("--trainer.check_val_every_n_epoch", every)
    done = fit(tmp_path / "run", *RECIPE, *often, f"--trainer.callbacks+={EARLY}")
    assert checkpoint(tmp_path / "run")["global_step"] == 4 * every
    last = rows(tmp_path / "run")[-1]
    assert last["step"] == str(4 * every - 1)
    assert last["epoch"] == str(every - 1)
    assert "knn/val_top1" in last
    assert "ended by EarlyStopping (Stopping threshold reached: val/loss = " in done.out
    if every == 2:
        whole = tmp_path / "whole"
        fit(whole, *RECIPE, *often)
    check_goes_on(tmp_path / "run", whole, *often)


@pytest.mark.long
def test_early_stopping_in_mid_epoch_is_no_end_of_an_epoch(tmp_path: Path) -> None:
    often = ("--trainer.val_check_interval", 2)
    fit(tmp_path / "run", *RECIPE, *often, f"--trainer.callbacks+={EARLY}")
    assert checkpoint(tmp_path / "run")["global_step"] == 2
    assert "knn/val_top1" in rows(tmp_path / "run")[-1]
    fit(tmp_path / "whole", *RECIPE, *often)
    check_goes_on(tmp_path / "run", tmp_path / "whole", *often)


def test_a_last_epoch_that_no_validation_meets_is_validated(tmp_path: Path) -> None:
    fit(tmp_path / "run", *RECIPE, "--trainer.check_val_every_n_epoch", 2)
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found if "val/loss" in row] == ["7", "11"]
    assert [row["step"] for row in found if "knn/val_top1" in row] == ["11"]


@pytest.mark.long
def test_the_time_of_earlier_sessions_does_not_end_a_run_at_once(tmp_path: Path) -> None:
    timed = ("--trainer.max_epochs", 100_000, "--trainer.max_time", "00:00:00:01")
    done = fit(tmp_path / "run", *RECIPE, *timed)
    assert "ended by max_time (0:00:01) at step " in done.out
    before = checkpoint(tmp_path / "run")["global_step"]
    assert rows(tmp_path / "run")[-1].keys() >= {"val/loss", "knn/val_top1"}
    longer = fit(
        tmp_path / "run", *RECIPE, *timed[:2], "--resume", "--trainer.max_time", "00:00:00:02"
    )
    assert "ended by max_time (0:00:02) at step " in longer.out
    assert "schedule" not in longer.out
    assert checkpoint(tmp_path / "run")["global_step"] > before
    steps = [int(row["step"]) for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert steps == list(range(len(steps)))


def test_more_steps_go_on_within_the_epoch(tmp_path: Path) -> None:
    there = ("--run_dir", tmp_path / "run")
    fit(tmp_path / "run", *RECIPE, "--trainer.max_steps", 6)
    assert rows(tmp_path / "run")[-1].keys() >= {"val/loss", "knn/val_top1"}
    again = fit(tmp_path / "run", *RECIPE, "--trainer.max_steps", 6, "--resume")
    assert "a larger --trainer.max_steps goes on" in again.out
    more = fit(tmp_path / "run", *RECIPE, "--trainer.max_steps", 9, "--resume")
    assert "The schedule's end moves from step 6 to 9: from here on" in more.out
    found = rows(tmp_path / "run")
    assert [int(row["step"]) for row in found] == list(range(9))
    assert [int(row["epoch"]) for row in found] == [0] * 4 + [1] * 4 + [2]
    fewer = run("fit", *QUICK, *RECIPE, "--trainer.max_steps", 8, "--resume", *there)
    assert "trainer.max_steps was 9" in fewer.sentence
    assert "out, not in" in fewer.sentence


class _Saves(L.Callback):
    """Notes each step that is saved."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        self.steps.append(trainer.global_step)


def test_a_callback_that_has_ended_one_run_saves_the_next_as_any(tmp_path: Path) -> None:
    saver = SaveCheckpoint(every_n_steps=1)
    saver.path = tmp_path / "last.ckpt"
    early = EarlyStopping("val/loss", stopping_threshold=100.0)
    steps = []
    for others in ([early], []):
        saves = _Saves()
        quiet = {**QUIET, "enable_checkpointing": True}
        trainer = L.Trainer(
            **quiet, max_epochs=2, limit_train_batches=3, callbacks=[*others, saver, saves]
        )
        model = SimCLR("resnet10t", NARROW, optimizer="sgd", warmup_epochs=0)
        trainer.fit(model, ContrastiveDataModule(batch_size=64, image_size=8))
        steps.append(saves.steps)
    assert steps == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]
