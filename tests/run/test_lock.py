"""One process trains in a run directory; the kernel knows which, and knows when it is dead."""

import errno
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import QUICK, finish, fit, run, signal_when, start
from run_files import files, rows

from simclr_pl.core.errors import UserError
from simclr_pl.run import lock
from simclr_pl.run.directory import RunDirectory

ME = f"process {os.getpid()} on {socket.gethostname()}"


@pytest.fixture
def held(tmp_path: Path) -> Iterator[RunDirectory]:
    """A directory in which this process says it trains."""
    directory = RunDirectory(tmp_path / "run")
    directory.claim(resume=False)
    yield directory
    directory.release()


def test_a_second_process_is_refused_and_the_first_trains_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    endless = (*QUICK, "--trainer.max_epochs", "100000", "--run_dir", directory)
    first = start("fit", *endless)
    signal_when(first, (directory / "checkpoints" / "last.ckpt").exists, signal.SIGSTOP)
    before = files(directory)
    second = run("fit", *endless, "--resume").sentence
    assert f"{directory} is in use: process {first.pid} on {socket.gethostname()}" in second
    assert "give another --run_dir" in second
    assert files(directory) == before
    # Whoever only reads is let in.
    assert run("validate", "--run_dir", directory, "--wandb", "off").code == 0
    assert run("report", directory, "--curves_only").code == 0
    reached = len(rows(directory))
    first.send_signal(signal.SIGCONT)
    signal_when(first, lambda: len(rows(directory)) > reached, signal.SIGTERM)
    assert finish(first).code == 75
    assert not (directory / ".lock").exists()


def test_a_directory_in_use_is_refused_before_it_holds_a_run(held: RunDirectory) -> None:
    assert not held.holds_run
    before = files(held.path)
    for option in ("--resume", "--tensorboard=false"):
        sentence = run("fit", *QUICK, "--run_dir", held.path, option).sentence
        assert f"in use: {ME} trains in it" in sentence
    assert files(held.path) == before


def test_a_fine_tuning_is_refused_a_directory_in_use(source: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "out" / "finetune-0.1-seed0")
    directory.claim(resume=False)
    args = ("--run_dir", source, "--label_fraction", "0.1", "--wandb", "off")
    sentence = run("finetune", *args, "--out", tmp_path / "out").sentence
    assert f"{directory.path} is in use: {ME}" in sentence
    assert "give another --out" in sentence
    directory.release()


@pytest.mark.parametrize("count", ["1", "0"])
def test_a_restarted_slurm_job_waits_for_the_one_before(
    held: RunDirectory, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setattr(lock, "AT_ONCE_S", 0.01)
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    other = RunDirectory(held.path)
    if count == "0":
        with pytest.raises(UserError, match="in use"):
            other.claim(resume=True)
        return
    waiting = threading.Thread(target=other.claim, kwargs={"resume": True})
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    held.release()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_restarted_slurm_job_does_not_wait_for_ever(
    held: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "AT_ONCE_S", 0.01)
    monkeypatch.setattr(lock, "RESTARTED_S", 0.02)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.raises(UserError, match="in use"):
        RunDirectory(held.path).claim(resume=True)
    assert capsys.readouterr().out == f"waiting up to 0 s for {ME} to leave {held.path}\n"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_process_has_let_go_though_its_workers_live(tmp_path: Path) -> None:
    directory, note = tmp_path / "run", tmp_path / "worker"
    killed = os.fork()
    if killed == 0:
        RunDirectory(directory).claim(resume=False)
        worker = os.fork()
        if worker == 0:
            signal.pause()
        note.write_text(str(worker))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    worker = int(note.read_text())
    try:
        assert (directory / ".lock").exists()
        RunDirectory(directory).claim(resume=False)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_a_killed_process_has_left_is_no_run_and_no_hindrance(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("123\nnode7\n")
    fit(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(source)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock._say_no_locks.cache_clear()
    outcome = fit(tmp_path / "run")
    fit(tmp_path / "run", "--resume")
    assert outcome.out.count("this file system has no locks") == 1
    assert "this file system" not in fit(tmp_path / "other").out
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_lock_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    sentence = run("fit", *QUICK, "--run_dir", tmp_path / "run").sentence
    assert f"{tmp_path / 'run' / '.lock'} cannot be written" in sentence
