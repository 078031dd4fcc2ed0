"""Numbers of a step are worked out where they are logged, and are those of any other interval."""

from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, rows, run

from simclr_pl import SimCLR

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
    log_step = SimCLR._log_step

    def counted(self: SimCLR, output: Any) -> None:
        calls.append(self.trainer.global_step)
        log_step(self, output)

    monkeypatch.setattr(SimCLR, "_log_step", counted)
    logged(tmp_path, 4)
    assert calls == [0, 3, 7, 9]  # the first and the last are for the lines that a person sees
