"""Kills: whenever a run is killed, its resume ends as the run that was left alone, to the bit."""

import random
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import DRAWING, QUICK, fit
from run_files import checkpoint, rows
from stopping import begin, check_same_run, kill_when, paused

STEPS, EPOCHS = 12, 6
"""Steps of an epoch, and epochs."""

RECIPE = (
    *("--data.batch_size", "96", "--trainer.limit_train_batches", STEPS),
    *("--trainer.max_epochs", EPOCHS, "--model.encoder_args", DRAWING),
    *("--checkpoint.every_n_steps", "3", "--checkpoint.keep_every_n_epochs", "2"),
)
"""The Nth checkpoint is that of step 3 N, and an epoch's fourth one is written at its end."""

HALVES = ("--trainer.val_check_interval", "0.5")
"""An epoch's validations are behind its second checkpoint's step and its fourth one's."""


def begin_run(directory: Path, *args: Any, moment: str = "") -> subprocess.Popen[str]:
    """Starts the run, or its continuation, that waits at a moment."""
    return begin(directory, *QUICK, *RECIPE, *args, "--resume", moment=moment)


def check_complete(directory: Path, epochs: int, every: int) -> None:
    """No step and no validation is missing, none is there twice, and what is saved is not empty."""
    table, state = rows(directory), checkpoint(directory)
    assert [int(row["step"]) for row in table] == list(range(epochs * STEPS))
    for name, interval in (("val/loss", every), ("probe/train_top1", STEPS)):
        logged = [i for i, row in enumerate(table, 1) if name in row]
        assert logged == list(range(interval, epochs * STEPS + 1, interval))
    assert state["global_step"] == epochs * STEPS
    assert state["callbacks"]["OnlineProbe"].keys() == {"head", "optimizer", "counts"}
    assert state["optimizer_states"][0]["state"]
    assert state["lr_schedulers"][0]["last_epoch"] == epochs * STEPS
    assert state["loops"]["fit_loop"]["epoch_progress"]["total"]["processed"] == epochs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was left alone."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    fit(directory, *RECIPE)
    check_complete(directory, EPOCHS, STEPS)
    return directory


def resume(directory: Path, *args: Any) -> None:
    """A killed run goes on without a word."""
    assert fit(directory, *RECIPE, *args, "--resume").err == ""


def temporary(directory: Path) -> list[Path]:
    """Checkpoints that are not yet in their place."""
    return list((directory / "checkpoints").glob(".*.tmp"))


def test_a_run_killed_in_mid_epoch_ends_as_one_left_alone(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Two steps behind a checkpoint of every third one, and not at the end of an epoch.
    kill_when(begin_run(run), lambda: len(rows(run)) % STEPS in (8, 11))
    saved, reached = checkpoint(run)["global_step"], len(rows(run))
    assert 6 <= saved <= reached < EPOCHS * STEPS
    resume(run)
    check_same_run(run, whole)


def test_a_run_killed_in_an_epochs_validation_ends_as_one_left_alone(
    whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kill_when(begin_run(run, moment="validation 3"), paused(run))
    assert checkpoint(run)["global_step"] == 33
    assert len(rows(run)) == 36
    assert "val/loss" not in rows(run)[-1]
    resume(run)
    check_same_run(run, whole)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was left alone, with validations in mid-epoch."""
    directory = tmp_path_factory.mktemp("halves") / "run"
    fit(directory, *RECIPE, *HALVES)
    check_complete(directory, EPOCHS, STEPS // 2)
    return directory


@pytest.mark.parametrize(("moment", "saved"), [("validation 3", 15), ("renamed 6", 18)])
def test_a_run_killed_at_a_validation_in_mid_epoch_ends_as_one_left_alone(
    halves: Path, tmp_path: Path, moment: str, saved: int
) -> None:
    run = tmp_path / "run"
    kill_when(begin_run(run, *HALVES, moment=moment), paused(run))
    # That of step 18 is written behind the validation: a resume would not make up for it.
    assert checkpoint(run)["global_step"] == saved
    assert len(rows(run)) == 18
    assert ("val/loss" in rows(run)[-1]) == (saved == 18)
    resume(run, *HALVES)
    check_same_run(run, halves)


@pytest.mark.parametrize(
    ("moment", "saved"),
    [
        pytest.param("part 6", 15, id="a part written"),
        pytest.param("whole 7", 18, id="all written"),
        pytest.param("renamed 6", 18, id="in its place in mid-epoch"),
        pytest.param("renamed 8", 24, id="in its place at the end of an epoch"),
    ],
)
def test_a_run_killed_while_it_saves_has_the_old_checkpoint_or_the_new(
    whole: Path, tmp_path: Path, moment: str, saved: int
) -> None:
    run = tmp_path / "run"
    kill_when(begin_run(run, moment=moment), paused(run))
    assert checkpoint(run)["global_step"] == saved
    found = [(path.stat().st_size > 0, zipfile.is_zipfile(path)) for path in temporary(run)]
    place, _, _ = moment.partition(" ")
    assert found == {"part": [(True, False)], "whole": [(True, True)], "renamed": []}[place]
    resume(run)
    check_same_run(run, whole)


# Twenty kills -------------------------------------------------------------------------------------

LONG = 40
"""Epochs that are more than twenty processes get through before they are killed."""

MANY = ("--trainer.max_epochs", LONG, *HALVES)


def written(path: Path) -> int:
    """When a file was written, 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def after(directory: Path, delay: float) -> Callable[[], bool]:
    """Whether it is so many seconds ago that this process has logged its first step."""
    metrics = directory / "metrics.csv"
    old = written(metrics)
    seen: list[float] = []

    def ready() -> bool:
        if not seen and written(metrics) != old:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() >= seen[0] + delay

    return ready


def since_now(delay: float) -> Callable[[], bool]:
    """Whether so many seconds have passed."""
    end = time.monotonic() + delay
    return lambda: time.monotonic() >= end


def landed(directory: Path, moment: str, before: dict[Path, int]) -> str:
    """Where a kill has hit the run, from what it has left behind."""
    table = rows(directory)
    if not (directory / "checkpoints" / "last.ckpt").exists():
        return "before the first checkpoint"
    if moment in ("part", "whole", "renamed") or any(
        written(path) != before.get(path) for path in temporary(directory)
    ):
        return "while saving"
    if written(directory / "metrics.csv") == before[directory / "metrics.csv"]:
        return "before the first new step"
    if len(table) % (STEPS // 2) == 0 and "val/loss" not in table[-1]:
        return "in validation"
    return "in mid-epoch"


def twenty_moments() -> list[tuple[str, float]]:
    """Names of moments to wait for or `step` or `start`, with a count or a delay in seconds."""
    draw = random.Random(0)
    delays = [("step", draw.uniform(0, 0.3)) for _ in range(8)]
    delays += [("start", draw.uniform(2, 6)) for _ in range(2)]
    places = ("validation", "part", "whole", "renamed")
    moments = [*delays, *((place, draw.randint(1, 6)) for place in 2 * places)]
    draw.shuffle(moments)
    return [("step", 0), ("part", 1), *moments]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_twenty_times_ends_as_one_left_alone(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    places: Counter[str] = Counter()
    saved = 0
    for moment, number in twenty_moments():
        watched = [run / "metrics.csv", *temporary(run)]
        before = {path: written(path) for path in watched}
        if moment in ("step", "start"):
            process = begin_run(run, *MANY)
            kill_when(process, after(run, number) if moment == "step" else since_now(number))
        else:
            kill_when(begin_run(run, *MANY, moment=f"{moment} {number}"), paused(run))
        places[landed(run, moment, before)] += 1
        if (run / "checkpoints" / "last.ckpt").exists():
            now = checkpoint(run)["global_step"]
            assert now >= saved
            saved = now
        assert [int(row["step"]) for row in rows(run)] == list(range(len(rows(run))))
    assert places.total() == 20
    assert 0 < saved < LONG * STEPS
    resume(run, *MANY)
    fit(whole, *RECIPE, *MANY)
    check_complete(whole, LONG, STEPS // 2)
    check_same_run(run, whole)
    for place, count in places.most_common():
        print(f"{count:3} killed {place}")
    print(f"the last one at step {saved} of {LONG * STEPS}; all bits are the same")
