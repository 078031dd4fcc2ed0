"""Signals to all processes of a run at once, as `scancel`, `timeout` and a closed terminal send."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import QUICK, checkpoint, finish, rows, start
from photographs import fill

from simclr_pl.errors import UNFINISHED

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

COUNT = 360

RECIPE = (
    *QUICK,
    *("--data.dataset", "folder", "--data.num_workers", "2", "--data.batch_size", "4"),
    *("--trainer.limit_train_batches", "80", "--trainer.max_epochs", "3"),
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


def wait(ready, seconds: float = 60) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it never got there"
        time.sleep(0.02)


def stuck(process: subprocess.Popen[str], run: Path, paths: list[Path]) -> None:
    """Returns when both workers hang in a read, and the main process waits for them."""
    wait(lambda: len(rows(run)) >= 4 or process.poll() is not None)
    assert process.poll() is None, finish(process)
    for path in paths:
        path.unlink()
        os.mkfifo(path)  # a reader waits until somebody writes
    seen = [-1]

    def quiet() -> bool:
        seen.append(len(rows(run)))
        time.sleep(1)
        return len(rows(run)) == seen[-1]

    wait(quiet)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([signal.SIGTERM, signal.SIGINT], id="SIGINT behind it"),
        pytest.param([signal.SIGHUP], id="closed terminal"),
    ],
)
def test_a_signal_to_the_group_saves_and_leaves_no_process_though_workers_hang(
    tmp_path: Path, numbers: list[signal.Signals]
) -> None:
    run, paths = tmp_path / "run", fill(tmp_path / "images", COUNT)
    process = start(
        *("fit", *RECIPE, "--data.root", tmp_path / "images", "--run_dir", run),
        start_new_session=True,
    )
    try:
        stuck(process, run, paths)
        for number in numbers:
            os.killpg(process.pid, number)
            time.sleep(0.1)
        done = finish(process, 60)
        assert group(process.pid) == []
    finally:
        if left := group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            print(left)
    assert done.code == UNFINISHED, done
    step = len(rows(run))
    assert done.err.startswith(f"unfinished: stopped by {numbers[0].name} at step {step}, saved in")
    assert checkpoint(run)["global_step"] == step


def test_workers_that_hang_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    run, paths = tmp_path / "run", fill(tmp_path / "images", COUNT)
    process = start(
        *("fit", *RECIPE, "--data.root", tmp_path / "images", "--run_dir", run),
        start_new_session=True,
    )
    try:
        stuck(process, run, paths)
        assert len(group(process.pid)) == 3
        process.kill()
        process.communicate()
        wait(lambda: not group(process.pid), 10)
    finally:
        if group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
