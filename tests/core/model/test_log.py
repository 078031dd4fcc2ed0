"""Numbers of a step are worked out where they are logged, and are those of any other interval."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from commands import NARROW, QUICK, QUIET, run
from run_files import rows

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.core.model import simclr

STEP = ("train/loss", "train/contrastive_top1", "train/lr", "train/grad_norm")


def logged(directory: Path, every: int) -> dict[str, dict[str, float]]:
    outcome = run(
        "fit", *QUICK, "--trainer.limit_train_batches", "5", "--run_dir", directory,
        "--trainer.log_every_n_steps", every,
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    table = [row for row in rows(directory) if STEP[0] in row]
    return {row["step"]: {name: float(row[name]) for name in STEP} for row in table}


def test_an_interval_changes_which_steps_are_logged_and_nothing_else(tmp_path: Path) -> None:
    each, some = logged(tmp_path / "each", 1), logged(tmp_path / "some", 3)
    assert list(each) == [str(step) for step in range(10)]
    assert list(some) == ["2", "5", "8"]
    for step, numbers in some.items():
        assert numbers == each[step]


def test_steps_that_are_not_logged_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    log_step = simclr.log_step

    def counted(module: SimCLR, *args: Any) -> None:
        calls.append(module.trainer.global_step)
        log_step(module, *args)

    monkeypatch.setattr(simclr, "log_step", counted)
    logged(tmp_path, 4)
    # The first and the last are for the lines that a person sees, an epoch's last for callbacks.
    assert calls == [0, 3, 4, 7, 9]


@pytest.mark.parametrize("on_epochs", [True, False])
def test_callbacks_find_the_loss_of_the_step_before_them(tmp_path: Path, on_epochs: bool) -> None:
    """As EarlyStopping and ModelCheckpoint do: at a validation and where an epoch ends."""
    found: dict[int, list[float]] = {}

    class Reads(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, _: Any, outputs: Any, *args: Any) -> None:
            found[trainer.global_step] = [float(outputs["loss"])]

        def _read(self, trainer: L.Trainer) -> None:
            found[trainer.global_step].append(float(trainer.callback_metrics["train/loss"]))

        def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
            self._read(trainer)

        def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
            self._read(trainer)

    trainer = L.Trainer(
        **{**QUIET, "log_every_n_steps": 100}, max_epochs=2, num_sanity_val_steps=0,
        limit_train_batches=5, limit_val_batches=1, val_check_interval=2,
        check_val_every_n_epoch=1 if on_epochs else None, callbacks=[Reads()],
    )  # fmt: skip
    trainer.fit(
        SimCLR("resnet10t", NARROW, warmup_epochs=0),
        ContrastiveDataModule("digits", image_size=8, batch_size=128),
    )
    read = {step: losses for step, losses in found.items() if len(losses) > 1}
    assert list(read) == ([2, 4, 5, 7, 9, 10] if on_epochs else [2, 4, 5, 6, 8, 10])
    for first, *others in read.values():
        assert others == [pytest.approx(first, rel=1e-6)] * len(others)
