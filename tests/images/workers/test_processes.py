"""Worker processes: room to hand batches over, waits, and ends."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from commands import called
from photographs import fill
from torch import Tensor

from simclr_pl import SimCLRViews, UserError
from simclr_pl.images.workers import processes as workers
from simclr_pl.images.workers import room
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.images.workers.pool import results_of
from simclr_pl.images.workers.processes import told_of_waiting

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[ImageFiles]:
    paths = fill(tmp_path / "images", 24)
    files = ImageFiles(paths, torch.zeros(24, dtype=torch.int64))
    views = SimCLRViews(20, seed=7)
    source = files.prepared(views, views, 2)
    yield source
    source.close()


def plan(batches: int, size: int = 2) -> list[Tensor]:
    return [torch.arange(size) + i for i in range(batches)]


def children() -> list[int]:
    return [process.pid or 0 for process in multiprocessing.active_children()]


def test_batches_that_shared_memory_cannot_hold_are_refused_before_any_is_read(
    source: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.views = SimCLRViews(30_000)
    with pytest.raises(UserError) as error:
        next(source.batches(plan(9, 24), 0, "views"))
    said = str(error.value)
    assert said.startswith("2 workers put 5 batches of 1.24e+05 MiB into shared memory, 6.18e+05 M")
    assert " in all, and /dev/shm has " in said
    assert "docker run --shm-size 8g" in said
    assert children() == []
    monkeypatch.setattr(room, "SHARED_MEMORY", Path("/none"))  # where nobody knows how much
    source.views = SimCLRViews(20)
    assert len(list(source.batches(plan(3), 0, "views"))) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_shared_memory_that_runs_out_is_a_sentence(tmp_path: Path) -> None:
    """A batch lost in a worker's queue would be waited for for ever."""
    fill(tmp_path / "images", 200)
    command = (
        "mount -t tmpfs -o size=256k none /dev/shm && exec "
        f"{sys.executable} -m simclr_pl pack {tmp_path}/images {tmp_path}/packed"
    )
    done = called("unshare", "-m", "sh", "-c", command, timeout=60)
    assert done.returncode == 2, done
    assert "error: a batch cannot be put into shared memory (" in done.stderr
    assert "/dev/shm has 0.25 MiB, of which " in done.stderr
    assert not (tmp_path / "packed").exists()


@contextmanager
def handles(more: int) -> Iterator[None]:
    """A context in which this process and its children may open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    gaps = [os.open(os.devnull, os.O_RDONLY)]
    while gaps[-1] < used:
        gaps.append(os.dup(gaps[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (gaps[-1] + 1 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for gap in gaps:
            os.close(gap)


@pytest.mark.parametrize("more", [1, 2, 8, 12, 20, 28])
def test_a_lack_of_file_handles_is_a_sentence(source: ImageFiles, more: int) -> None:
    said = ""
    with handles(more):
        try:
            assert len(list(source.batches(plan(12), 0, "views"))) == 12
        except UserError as error:
            said = str(error)
    assert not said or "too many files are open: raise the limit" in said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "ended by SIGKILL: the system does so when memory runs out: give fewer"),
        (signal.SIGBUS, "ended by SIGBUS: shared memory is full, or a file has shrunk: give a"),
    ],
)
def test_a_worker_that_is_killed_is_a_sentence(
    source: ImageFiles, number: signal.Signals, said: str
) -> None:
    batches = source.batches(plan(20), 0, "views")
    next(batches)
    os.kill(children()[0], number)
    with pytest.raises(UserError) as error:
        list(batches)
    assert said in str(error.value)
    source.close()
    assert children() == []


def test_a_wait_for_images_is_said_and_watched(
    source: ImageFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "NOTICE_S", 1.5)
    monkeypatch.setattr(workers, "LOOK_S", 0.5)
    batches = source.batches(plan(20), 0, "views")
    next(batches)
    path = source.paths[19]
    path.unlink()
    os.mkfifo(path)
    seen: list[float] = []

    def watch(seconds: float) -> None:
        seen.append(seconds)
        if seconds > 2:
            raise InterruptedError

    with told_of_waiting(watch), pytest.raises(InterruptedError):
        list(batches)
    assert 0.5 <= seen[0] < seen[1] < seen[-1]
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("no images for 2 s: 2 worker processes are still reading or decoding; ")


def hand_over_to_nobody(item: int) -> int:
    """Takes the other side of a hand-over, and hangs up."""
    address, _ = resource_sharer.DupFd(0)._id
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address)
    time.sleep(0.2)
    return item


def test_a_worker_says_nothing_of_a_main_process_that_is_gone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert list(results_of(hand_over_to_nobody, [1], 1)) == [1]
    assert capfd.readouterr() == ("", "")


def test_workers_leave_signals_alone(source: ImageFiles) -> None:
    batches = source.batches(plan(20), 0, "views")
    first = next(batches)
    for child in children():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(child, number)
    assert len([first, *batches]) == 20
