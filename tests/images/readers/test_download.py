"""Downloads: of several processes at once, broken off, without locks, into read-only folders."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from downloads import FOLDER, Served, archive, point_to, preparing, served
from filelock import FileLock, SoftFileLock

from simclr_pl import ContrastiveDataModule, UserError, locks
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.readers import fashion_mnist
from simclr_pl.images.readers.download import fetch_once

BATCHES = ["batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as found:
        yield found


def until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "it never got there"
        time.sleep(0.01)


def ended(*processes: ForkServerProcess | ForkProcess) -> list[int | None]:
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def names(root: Path) -> list[str]:
    """Of all that is there but the user's home."""
    return sorted(path.name for path in root.iterdir() if path.name != "home")


WHOLE = [".cifar10.lock", FOLDER, "cifar-10-python.tar.gz"]


def test_of_three_processes_one_downloads_and_the_others_wait(
    server: Served, tmp_path: Path
) -> None:
    root, said = tmp_path / "data", [tmp_path / f"{i}.txt" for i in range(3)]
    team = [preparing(server.tables, root, file, notice=0.5) for file in said]
    until(lambda: sum("waiting" in f.read_text() for f in said if f.exists()) == 2)
    assert not (root / FOLDER).exists()  # nothing that could be taken for data
    server.go_on.set()
    assert ended(*team) == [0, 0, 0]
    assert len(server.downloads) == 1
    assert names(root) == WHOLE
    assert names(root / FOLDER) == BATCHES
    (holder,) = [p for p, file in zip(team, said, strict=True) if "waiting" not in file.read_text()]
    line = f"waiting for process {holder.pid} on {os.uname().nodename} to get cifar10 into {root}\n"
    assert sorted(file.read_text() for file in said) == ["", line, line]


def test_who_waits_for_less_than_ten_seconds_says_nothing(server: Served, tmp_path: Path) -> None:
    assert locks.NOTICE_AFTER_S == 10
    team = [preparing(server.tables, tmp_path, tmp_path / f"{i}.txt") for i in range(2)]
    until(lambda: server.downloads)
    time.sleep(1)
    server.go_on.set()
    assert ended(*team) == [0, 0]
    assert [(tmp_path / f"{i}.txt").read_text() for i in range(2)] == ["", ""]


def test_a_download_that_was_killed_is_done_again(server: Served, tmp_path: Path) -> None:
    root, said = tmp_path / "data", [tmp_path / f"{i}.txt" for i in range(2)]
    first = preparing(server.tables, root, said[0])
    until(lambda: server.downloads)
    until(lambda: any(p.stat().st_size for p in root.glob(".cifar10.unfinished/*.tar.gz")))
    second = preparing(server.tables, root, said[1], notice=0.2)
    until(lambda: said[1].exists() and "waiting" in said[1].read_text())
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert ended(first) == [-signal.SIGKILL]
    # The lock ended with its holder, and what that has left is taken for nothing.
    server.go_on.set()
    assert ended(second) == [0]
    assert len(server.downloads) == 2
    assert names(root) == WHOLE
    assert names(root / FOLDER) == BATCHES


def test_what_is_there_is_not_downloaded_again(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.go_on.set()
    point_to(server.tables, monkeypatch)
    for _ in range(2):
        ContrastiveDataModule("cifar10", str(tmp_path)).prepare_data()
    assert len(server.downloads) == 1
    # A file that isn't whole is noticed, and the archive serves again.
    batch = tmp_path / FOLDER / "data_batch_2"
    content = batch.read_bytes()
    batch.write_bytes(content[:100])
    prepare("cifar10", tmp_path)
    assert batch.read_bytes() == content
    assert len(server.downloads) == 1
    assert names(tmp_path) == WHOLE


def test_an_archive_that_was_put_there_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, tables = archive()
    point_to(tables | {"url": "http://127.0.0.1:9/nobody-listens"}, monkeypatch)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    prepare("cifar10", tmp_path)
    assert names(tmp_path) == WHOLE
    assert path.read_bytes() == content
    assert not path.is_symlink()


def test_a_download_that_fails_leaves_nothing(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.go_on.set()
    point_to(server.tables | {"tgz_md5": "0" * 32}, monkeypatch)
    with pytest.raises(UserError, match="File not found or corrupted"):
        prepare("cifar10", tmp_path / "data")
    assert names(tmp_path / "data") == [".cifar10.lock"]


def test_fashion_mnist_is_not_taken_for_there_in_mid_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's own check of it looks at names alone."""
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(fashion_mnist, "FASHION_DEBIAN", tmp_path / "no-such-package")
    seen = []

    def broken_off(self: Any) -> None:
        raw = Path(self.raw_folder)
        raw.mkdir(parents=True)
        for name, _ in self.resources:
            (raw / name).write_bytes(b"half of it")
        seen.append(fashion_mnist.FASHION_MNIST.there(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(FashionMNIST, "download", broken_off)
    with pytest.raises(KeyboardInterrupt):
        prepare("fashion_mnist", tmp_path)
    assert seen == [False]
    assert names(tmp_path) == [".fashion_mnist.lock"]


# Folders that cannot be written -------------------------------------------------------------------


def as_nobody(work: Callable[[], object]) -> int | None:
    """Runs something as a user who owns nothing; the exit code."""

    def changed() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        work()

    process = multiprocessing.get_context("fork").Process(target=changed)
    process.start()
    return ended(process)[0]


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@needs_root
@forks
def test_whole_data_that_cannot_be_written_needs_no_lock(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.go_on.set()
    point_to(server.tables, monkeypatch)
    prepare("cifar10", tmp_path)
    (tmp_path / ".cifar10.lock").unlink()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)

    def work() -> None:
        assert not os.access(tmp_path, os.W_OK)
        prepare("cifar10", tmp_path)
        assert len(load("cifar10", tmp_path).train) == 100

    assert as_nobody(work) == 0
    assert names(tmp_path) == [FOLDER, "cifar-10-python.tar.gz"]


@needs_root
@forks
def test_a_folder_that_cannot_be_written_and_has_no_data_is_said(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(server.tables, monkeypatch)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)

    def work() -> None:
        with pytest.raises(UserError, match=r"could not be downloaded \(.*Permission denied"):
            prepare("cifar10", tmp_path)

    assert as_nobody(work) == 0
    assert not server.downloads


# Locks --------------------------------------------------------------------------------------------


def fetched(root: Path, into: Path) -> None:
    (into / "data").write_text("whole")


def there(root: Path) -> bool:
    return (root / "data").exists()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "NOTICE_AFTER_S", 0.2)
    monkeypatch.setattr(locks, "LOCK_TIMEOUT_S", 0.6)


@pytest.mark.usefixtures("short")
def test_nobody_waits_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(tmp_path / ".set.lock"):
        (tmp_path / ".set.lock").write_text("123\nnode7\n")
        with pytest.raises(UserError) as caught:
            fetch_once("set", tmp_path, there, fetched)
    assert str(caught.value).startswith(
        f"waited 1 s for process 123 on node7 to get set into {tmp_path}: start again"
    )
    assert f"remove {tmp_path}/.set.lock" in str(caught.value)
    assert capsys.readouterr().out == (
        f"waiting for process 123 on node7 to get set into {tmp_path}\n"
    )


def no_locks(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("number", sorted(locks.WITHOUT_LOCKS), ids=errno.errorcode.get)
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(number))
    # A process of another machine that was killed: nobody here can know.
    (tmp_path / ".set.held").write_text("123\nnode7\n")
    with pytest.raises(UserError, match="s for process 123 on node7 to get set") as caught:
        fetch_once("set", tmp_path, there, fetched)
    assert f"remove {tmp_path}/.set.held" in str(caught.value)
    (tmp_path / ".set.held").unlink()
    fetch_once("set", tmp_path, there, fetched)
    assert (tmp_path / "data").read_text() == "whole"
    assert not (tmp_path / ".set.held").exists()


@pytest.mark.usefixtures("short")
def test_without_locks_one_waits_for_the_other_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.ENOLCK))
    with (
        SoftFileLock(tmp_path / ".set.held"),
        pytest.raises(UserError, match=f"process {os.getpid()} on"),
    ):
        fetch_once("set", tmp_path, there, fetched)


def test_another_failure_of_a_lock_is_no_missing_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        fetch_once("set", tmp_path, there, fetched)
    assert not there(tmp_path)
