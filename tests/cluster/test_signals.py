"""Signals: a run told to stop saves at a step's end, and goes on as if nothing had been."""

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, Outcome, finish, fit, signal_when
from distances import far
from run_files import checkpoint, rows
from stopping import begin, check_same_run, paused

from simclr_pl.run.unfinished import UNFINISHED

STEPS, EPOCHS = 12, 6
"""Steps of an epoch, and epochs."""

RECIPE = (
    *("--data.batch_size", "96", "--trainer.limit_train_batches", STEPS),
    *("--trainer.max_epochs", EPOCHS),
)


def begin_run(directory: Path, *args: Any, moment: str = "") -> subprocess.Popen[str]:
    """Starts the run, or its continuation, that waits at a moment."""
    return begin(directory, *QUICK, *RECIPE, *args, moment=moment)


def send(process: subprocess.Popen[str], directory: Path, *numbers: signal.Signals) -> Outcome:
    """Sends signals when the moment has come, and waits for the end."""
    first, *others = numbers
    signal_when(process, paused(directory), first)
    for number in others:
        process.send_signal(number)
    return finish(process)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was left alone."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    fit(directory, *RECIPE)
    return directory


@pytest.mark.parametrize(
    ("moment", "step", "number"),
    [
        pytest.param("step 14", 14, signal.SIGTERM, id="mid-epoch"),
        pytest.param("step 24", 24, signal.SIGUSR1, id="before a validation"),
        pytest.param("validation 2", 24, signal.SIGTERM, id="in a validation"),
        pytest.param("epoch 2", 24, signal.SIGUSR1, id="behind a validation"),
    ],
)
def test_a_run_that_is_told_to_stop_saves_and_goes_on(
    whole: Path, tmp_path: Path, moment: str, step: int, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    done = send(begin_run(run, moment=moment), run, number)
    assert done.code == UNFINISHED == 75, done
    assert done.err == (
        f"unfinished: stopped by {number.name} at step {step}, saved in "
        f"{run}/checkpoints/last.ckpt; the same command with --resume --run_dir {run} continues\n"
    )
    assert checkpoint(run)["global_step"] == step
    fit(run, *RECIPE, "--resume")
    check_same_run(run, whole)


def test_a_second_signal_changes_nothing(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    signals = [signal.SIGUSR1, *[signal.SIGTERM] * 5]
    done = send(begin_run(run, "--resume", moment="step 5"), run, *signals)
    assert done.code == UNFINISHED, done
    assert done.err.endswith("; the same command continues\n")
    fit(run, *RECIPE, "--resume")
    check_same_run(run, whole)


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = send(begin_run(run, moment="start 1"), run, signal.SIGTERM)
    assert done.code == UNFINISHED, done
    assert done.err.startswith("unfinished: stopped by SIGTERM before the first step; ")
    assert not run.exists()


def test_a_signal_in_the_last_epochs_end_finds_the_run_finished(
    whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = send(begin_run(run, moment=f"epoch {EPOCHS}"), run, signal.SIGTERM)
    assert (done.code, done.err) == (0, "")
    check_same_run(run, whole)


@pytest.mark.ddp
def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    two = ("--trainer.devices", "2")
    done = send(begin_run(run, *two, moment="step 20"), run, signal.SIGUSR1)
    assert done.code == UNFINISHED, done
    assert "unfinished: stopped by SIGUSR1 at step " in done.err
    assert 20 <= checkpoint(run)["global_step"] <= 22
    assert finish(begin_run(run, *two, "--resume")).code == 0
    assert finish(begin_run(whole, *two)).code == 0
    one, other = checkpoint(run), checkpoint(whole)
    for part in ("state_dict", "optimizer_states"):
        assert far(one[part], other[part]) == 0
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(whole)]


# Random moments ----------------------------------------------------------------------------------


def signal_at_random(directory: Path, args: tuple[Any, ...], count: int, seed: int) -> Counter[str]:
    """Stops a run `count` times, each time some milliseconds after its first new step."""
    draw, ended = random.Random(seed), Counter[str]()
    metrics = directory / "metrics.csv"
    for _ in range(count):
        written = metrics.stat().st_mtime_ns if metrics.exists() else 0
        before = len(rows(directory))
        process = begin_run(directory, *args, "--resume")
        end = time.monotonic() + 60
        while len(rows(directory)) <= before or metrics.stat().st_mtime_ns == written:
            assert process.poll() is None, finish(process)
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2))
        number = draw.choice([signal.SIGTERM, signal.SIGUSR1])
        process.send_signal(number)
        done = finish(process)
        assert done.code == UNFINISHED, done
        ended[done.err.split(", saved")[0]] += 1
        step = checkpoint(directory)["global_step"]
        assert f"at step {step}," in done.err
        assert [int(row["step"]) for row in rows(directory)] == list(range(step))
    return ended


@pytest.mark.timeout(400)
def test_signals_at_random_moments(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    many = ("--trainer.max_epochs", 40)
    ended = signal_at_random(run, many, 5, 0)
    assert ended.total() == 5
    fit(run, *RECIPE, *many, "--resume")
    fit(whole, *RECIPE, *many)
    assert rows(run) == rows(whole)
    assert far(checkpoint(run)["state_dict"], checkpoint(whole)["state_dict"]) == 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("devices", [1, 2])
def test_fifty_signals_at_random_moments(tmp_path: Path, devices: int) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    many = ("--trainer.max_epochs", 200, "--trainer.devices", devices)
    ended = signal_at_random(run, many, 25, devices)
    reached = checkpoint(run)["global_step"]
    assert finish(begin_run(run, *many, "--resume"), 900).code == 0
    assert finish(begin_run(whole, *many), 900).code == 0
    assert far(checkpoint(run)["state_dict"], checkpoint(whole)["state_dict"]) == 0
    print(f"{ended.total()} stops on {devices} devices, the last at step {reached}: same weights")
