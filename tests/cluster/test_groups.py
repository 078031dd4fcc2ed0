"""Signals to all processes of a run at once, as `scancel`, `timeout` and a closed terminal send.

Workers hang in a read all the while, as on a stalled disk: files are replaced by pipes that nobody
writes to.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, finish, fit, start
from photographs import fill
from run_files import checkpoint, rows
from stopping import check_same_run

from simclr_pl.core.randomness import epoch_order
from simclr_pl.run.unfinished import UNFINISHED

COUNT, BATCH = 120, 4

RECIPE = (
    *("--data.dataset", "folder", "--data.num_workers", "2", "--data.batch_size", BATCH),
    *("--trainer.limit_train_batches", COUNT // BATCH, "--trainer.max_epochs", "4"),
)


def group(number: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(of) == number and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait(ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it never got there"
        time.sleep(0.02)


@contextmanager
def alone(*args: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a group of its own, of which no process outlives the test."""
    process = start(*args, start_new_session=True)
    try:
        yield process
    finally:
        while group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    fill(root / "train", COUNT)
    fill(root / "val", 12, COUNT)
    return root


def block(paths: list[Path]) -> None:
    """Reading them takes for ever from now on."""
    for path in paths:
        path.unlink()
        os.mkfifo(path)


def stuck(process: subprocess.Popen[str], run: Path, paths: list[Path], step: int) -> None:
    """Returns when workers hang in a read, and the main process waits for them."""
    wait(lambda: len(rows(run)) >= step or process.poll() is not None)
    assert process.poll() is None, finish(process)
    block(paths)
    seen = [-1]

    def quiet() -> bool:
        seen.append(len(rows(run)))
        time.sleep(1)
        return len(rows(run)) == seen[-1]

    wait(quiet)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    fill(folder / "images" / "train", COUNT)
    fill(folder / "images" / "val", 12, COUNT)
    fit(folder / "run", *RECIPE, "--data.root", folder / "images", "--data.num_workers", "0")
    return folder / "run"


@pytest.mark.parametrize(
    ("place", "numbers"),
    [
        pytest.param("mid-epoch", [signal.SIGTERM, signal.SIGINT], id="SIGINT behind it"),
        pytest.param("validation", [signal.SIGHUP], id="closed terminal in validation"),
        pytest.param("start", [signal.SIGTERM], id="at the start of an epoch"),
    ],
)
def test_a_signal_to_the_group_saves_and_ends_it_though_workers_hang(
    tmp_path: Path, images: Path, whole: Path, place: str, numbers: list[signal.Signals]
) -> None:
    run = tmp_path / "run"
    train = sorted((images / "train").iterdir())
    later = [train[i] for i in epoch_order(0, 2, COUNT)[:BATCH].tolist()]
    blocked = {
        "mid-epoch": train,
        "validation": sorted((images / "val").iterdir()),
        "start": later,  # these come up in the midst of the epoch before, and have been read there
    }[place]
    step = {"mid-epoch": 4, "validation": 4, "start": 2 * COUNT // BATCH}[place]
    with alone("fit", *QUICK, *RECIPE, "--data.root", images, "--run_dir", run) as process:
        stuck(process, run, blocked, step)
        for number in numbers:
            os.killpg(process.pid, number)
            time.sleep(0.1)
        done = finish(process, 60)
        assert group(process.pid) == []
    assert done.code == UNFINISHED, done
    step = len(rows(run))
    assert done.err.startswith(f"unfinished: stopped by {numbers[0].name} at step {step}, saved in")
    assert checkpoint(run)["global_step"] == step
    for path in blocked:
        path.unlink()
    fill(images / "train", COUNT)
    fill(images / "val", 12, COUNT)
    fit(run, *RECIPE, "--data.root", images, "--data.num_workers", "0", "--resume")
    check_same_run(run, whole)


def test_workers_that_hang_do_not_outlive_a_killed_run(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    with alone("fit", *QUICK, *RECIPE, "--data.root", images, "--run_dir", run) as process:
        stuck(process, run, sorted((images / "train").iterdir()), 4)
        assert len(group(process.pid)) == 3
        process.kill()
        process.communicate()
        wait(lambda: not group(process.pid), 10)
