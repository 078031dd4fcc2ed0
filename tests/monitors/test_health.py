"""Health while training: when it is logged, on any number of ranks, to the bit over a resume."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from commands import QUICK, fit, run
from health import NAMES, by_svd, draw, measured
from monitored import Other, digits, trainer
from ranks import ranks
from run_files import checkpoint, rows, same_weights
from torch import Tensor

from simclr_pl import HealthMonitor, UserError
from simclr_pl.core.batch import EvaluationOutput

# Several ranks ------------------------------------------------------------------------------------


def on_this_rank(sizes: list[int]) -> tuple[dict[str, float], float, dict[str, float]]:
    """A step, a validation and the warnings' window, on this rank's rows."""
    rank = dist.get_rank() if dist.is_initialized() else None

    def mine(rows: Tensor, axis: int = 0) -> Tensor:
        return rows if rank is None else rows.split(sizes, axis)[rank]

    views = draw(sum(sizes))
    step = measured(tuple(mine(rows, 1) for rows in views))  # type: ignore[arg-type]
    logged: dict[str, float] = {}
    trainer: Any = SimpleNamespace(
        global_step=0, loggers=[], sanity_checking=False, current_epoch=0, is_global_zero=False
    )
    module: Any = SimpleNamespace(log=lambda name, value, **_: logged.update({name: float(value)}))
    monitor = HealthMonitor(2)
    for number in range(1, 4):
        trainer.global_step = number
        features, projections = (mine(rows, 1).flatten(0, 1) for rows in draw(sum(sizes), number))
        # A rank's loss is such that the mean over ranks is the global one.
        one = torch.tensor(float(number) + (0 if rank is None else rank - (len(sizes) - 1) / 2))
        output: Any = {"loss": one.double(), "features": features, "projections": projections}
        output["chance"] = math.log(2 * sum(sizes) - 1)
        monitor.on_train_batch_end(trainer, module, output, None, 0)
    again = HealthMonitor(2)
    again.load_state_dict(monitor.state_dict())
    for seed in (5, 6):
        features = mine(draw(sum(sizes), seed)[0][0])
        nothing = torch.zeros(len(features), dtype=torch.int64)
        clean = EvaluationOutput(features=features, labels=nothing, index=nothing)
        again.on_validation_batch_end(trainer, module, clean, None, 0)
    again.on_validation_epoch_end(trainer, module)
    return step._asdict(), again.state_dict()["loss"], logged


@pytest.mark.ddp
@pytest.mark.parametrize("sizes", [[3, 8], [1, 6, 4], [300, 400], [500, 7, 200]])
def test_numbers_are_those_of_one_process(sizes: list[int]) -> None:
    alone = on_this_rank(sizes)
    assert alone[2].keys() == NAMES | {"health/rankme"}
    assert alone[1] == 6
    for got in ranks(len(sizes), on_this_rank, sizes):
        for one, other in zip(got, alone, strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-9)


# What is logged -----------------------------------------------------------------------------------


def test_metrics_come_with_the_first_step_and_every_so_many(tmp_path: Path) -> None:
    often = ("--health.every_n_steps=3", "--trainer.max_epochs=4")
    fit(tmp_path / "run", *often, "--trainer.log_every_n_steps=4")
    table = {int(row["step"]): row for row in rows(tmp_path / "run")}
    assert sorted(step for step, row in table.items() if NAMES & row.keys()) == [0, 2, 5]
    assert all(table[step].keys() >= NAMES for step in (0, 2, 5))
    assert all("epoch" in row for row in table.values())
    assert sum("health/rankme" in row for row in table.values()) == 4
    every = fit(tmp_path / "every", "--health.every_n_steps=1")
    assert "warning" not in every.out
    for row in rows(tmp_path / "every"):
        chance = float(row["train/loss"]) - float(row["health/loss_over_chance"])
        assert chance == pytest.approx(math.log(255), rel=1e-6)
        two = 2 - 2 * float(row["health/positive_similarity"])
        assert float(row["health/alignment"]) == pytest.approx(two)


def test_zero_turns_it_off(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--health.every_n_steps=0")
    assert not any(name.startswith("health") for row in rows(tmp_path / "run") for name in row)


def test_a_number_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"health.every_n_steps is -1, but must be 0"):
        HealthMonitor(-1)


def test_other_callbacks_see_the_numbers() -> None:
    lightning = trainer(HealthMonitor(1), max_epochs=1, limit_train_batches=1)
    lightning.fit(Other(), digits())
    assert lightning.callback_metrics.keys() >= NAMES | {"health/rankme"}


def test_rankme_is_of_the_whole_validation_split(tmp_path: Path) -> None:
    from simclr_pl.protocols.features import encode

    model, data = Other().double(), digits(50)
    lightning = trainer(HealthMonitor(), max_epochs=1, limit_train_batches=1)
    lightning.fit(model, data)
    expected = by_svd(encode(model, data, "val").features)
    assert float(lightning.callback_metrics["health/rankme"]) == pytest.approx(expected, rel=1e-5)


def test_training_does_not_notice(tmp_path: Path) -> None:
    fit(tmp_path / "with", "--health.every_n_steps=1")
    fit(tmp_path / "without", "--health.every_n_steps=0")
    assert same_weights(checkpoint(tmp_path / "with"), checkpoint(tmp_path / "without"))
    table = [
        {name: value for name, value in row.items() if not name.startswith("health/")}
        for row in rows(tmp_path / "with")
    ]
    assert table == rows(tmp_path / "without")


@pytest.mark.long
def test_a_resumed_run_has_the_same_numbers_to_the_bit(tmp_path: Path) -> None:
    often = ("--health.every_n_steps=3", "--trainer.max_epochs=4")
    fit(tmp_path / "through", *often)
    stop = ("--trainer.callbacks+=recording.Interruption", "--trainer.callbacks.step=5")
    assert run("fit", *QUICK, *often, *stop, "--run_dir", tmp_path / "again").code != 0
    fit(tmp_path / "again", *often, "--resume")
    assert rows(tmp_path / "again") == rows(tmp_path / "through")
    states = [checkpoint(tmp_path / n)["callbacks"]["HealthMonitor"] for n in ("again", "through")]
    assert states[0] == states[1]
    assert states[0]["steps"] == 8


def test_between_looks_nobody_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = HealthMonitor(10)

    def waits(*_: Any) -> Any:
        raise AssertionError("waits for the device")

    output: Any = {"loss": torch.tensor(1.0)}
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, waits)
    for step in range(11, 20):
        monitor.on_train_batch_end(SimpleNamespace(global_step=step), None, output, None, 0)  # type: ignore[arg-type]


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step_health", "rankme"])
def test_an_error_in_the_arithmetic_is_said_once_and_survived(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> None:
        raise ArithmeticError("no convergence")

    monkeypatch.setattr(f"simclr_pl.monitors.health.{name}", broken)
    lightning = trainer(HealthMonitor(1), max_steps=3, limit_val_batches=1, val_check_interval=1)
    lightning.fit(Other(), digits())
    assert lightning.global_step == 3
    assert capsys.readouterr().out.count("health is not watched (ArithmeticError: no conv") == 1
