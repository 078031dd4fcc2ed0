"""A job on a cluster: what has been said when it is queued again, and when it isn't."""

import os
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from commands import QUICK
from run_files import checkpoint

from simclr_pl.__main__ import main
from simclr_pl.run.unfinished import GIVEN_UP, UNFINISHED

FAILING = "echo 'scontrol: error: Invalid job id' >&2; exit 1"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The standard error of job 12, in which `scontrol` is a script that looks at it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    scontrol(tmp_path)
    interrupt = signal.getsignal(signal.SIGINT)
    yield tmp_path / "err"
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it once it has interrupted a run


def scontrol(folder: Path, then: str = "") -> None:
    """Puts a `scontrol` on the path that keeps its arguments, and what had been said by then."""
    path = folder / "bin" / "scontrol"
    lines = ("#!/bin/sh", f"echo $@ > {folder}/asked", f"cp {folder}/err {folder}/before", then)
    path.write_text("\n".join(lines))
    path.chmod(0o755)


def stopped(said: Path, run: Path, step: int = 3) -> int:
    """Runs a job that is told to stop in a step; 0 is before the first."""
    callback = (
        f"--trainer.callbacks+={{class_path: recording.Stopped, init_args: {{step: {step}}}}}"
    )
    with said.open("w") as err, redirect_stderr(err):
        return main(["fit", *QUICK, "--run_dir", str(run), "--resume", callback])


@pytest.mark.processes
def test_a_stop_is_said_before_the_job_is_queued_again(said: Path, tmp_path: Path) -> None:
    """Slurm may end all of the job as soon as it has queued it."""
    run = tmp_path / "run"
    assert stopped(said, run) == UNFINISHED
    sentence = (
        f"unfinished: stopped by SIGTERM at step 3, saved in {run}/checkpoints/last.ckpt; "
        "Slurm is asked to queue job 12 again\n"
    )
    assert (tmp_path / "asked").read_text() == "requeue 12\n"
    assert (tmp_path / "before").read_text() == said.read_text() == sentence


@pytest.mark.processes
def test_a_job_that_is_not_queued_again_says_so(said: Path, tmp_path: Path) -> None:
    scontrol(tmp_path, FAILING)
    assert stopped(said, tmp_path / "run", step=0) == UNFINISHED
    before = (tmp_path / "before").read_text()
    assert before == (
        "unfinished: stopped by SIGTERM before the first step; "
        "Slurm is asked to queue job 12 again\n"
    )
    assert said.read_text() == (
        f"{before}scontrol did not queue job 12 again (scontrol: error: Invalid job id): the "
        "script is to do it (exit code 75)\n"
    )


def test_a_job_in_a_container_leaves_it_to_the_script(
    said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stopped(said, tmp_path / "run", step=0) == UNFINISHED
    assert said.read_text() == (
        "unfinished: stopped by SIGTERM before the first step; there is no scontrol here to queue "
        "job 12 again: the script is to do it (exit code 75)\n"
    )


IN_VAIN = (
    "job 12 was started 4 times without a new step, and is not queued again: give it more time "
    "(--time), or see above what it spends it on\n"
)


@pytest.mark.parametrize(("count", "code"), [(2, UNFINISHED), (3, GIVEN_UP)])
@pytest.mark.processes
def test_a_job_that_never_reaches_a_step_is_queued_again_three_times(
    said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, code: int
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
    assert stopped(said, tmp_path / "run", step=0) == code
    assert (tmp_path / "asked").exists() == (code == UNFINISHED)
    if code == GIVEN_UP:
        assert (
            said.read_text() == f"unfinished: stopped by SIGTERM before the first step; {IN_VAIN}"
        )


@pytest.mark.processes
def test_restarts_that_led_somewhere_do_not_count(
    said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    codes = []
    # One makes steps; of those behind it, the first are followed by one that makes another.
    for count, step in ((7, 2), (9, 0), (9, 3), (11, 0), (12, 0)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
        codes.append(stopped(said, run, step))
    assert codes == [UNFINISHED] * 4 + [GIVEN_UP]
    assert said.read_text() == f"unfinished: stopped by SIGTERM before the first step; {IN_VAIN}"
    assert checkpoint(run)["global_step"] == 3
    monkeypatch.setenv("SLURM_JOB_ID", "13")  # another job has restarts of its own
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert stopped(said, run, 0) == UNFINISHED


def test_a_stop_outside_slurm_leaves_nothing_of_it_in_a_checkpoint(source: Path) -> None:
    assert not any("Restarts" in name for name in checkpoint(source)["callbacks"])
