"""What every test gets: one thread, no account, nothing written outside its own folder."""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import fit
from processes import Guard, starts_processes

from simclr_pl.images.readers.fashion_mnist import FASHION_DEBIAN

# LightningCLI calls jsonargparse by names of its last major version.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

# Ranks, workers and runs in processes of their own share the cores: with more threads than cores,
# they mostly wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that runs the tests in the background has SIGINT ignored, and nohup SIGHUP; processes
# inherit that, and tests that send them one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """As OMP_NUM_THREADS, for this process."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is logged in to W&B, which keeps its files here, and no test knows another's seed."""
    wandb = (f"WANDB_{name}" for name in ("API_KEY", "MODE", "DISABLED", "PROJECT", "NAME"))
    # (Lightning leaves where ranks meet in the environment of whoever has started some.)
    meeting = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    for name in (*wandb, *meeting, "PL_GLOBAL_SEED", "SIMCLR_PL_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, read only."""
    directory = tmp_path_factory.mktemp("source") / "run"
    fit(directory)
    return directory


@pytest.fixture
def finished(source: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be mistreated."""
    directory = tmp_path / "finished"
    shutil.copytree(source, directory)
    return directory


GUARD = Guard()

LONG = 10.0
"""Seconds of computing at which a quick run says that a test is to be marked `long`."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lets no test of a quick run start processes, so that those that do get their mark."""
    GUARD.started.clear()
    GUARD.forbidden = "not processes" in item.config.option.markexpr
    try:
        return (yield)
    finally:
        GUARD.forbidden = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails a test that was kept from starting a process, or takes a quick run's time."""
    begin = time.process_time()
    try:
        result = yield
    finally:
        if GUARD.started:
            raise GUARD.failure()
    seconds = time.process_time() - begin
    if seconds > LONG and "not long" in item.config.option.markexpr:
        pytest.fail(f"it computes for {seconds:.0f} s: mark it with @pytest.mark.long", False)
    return result


COST = {"slurm": 90, "processes": 8, "long": 4}
"""Seconds of a test, roughly."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that start processes; skips what this machine cannot do, and says so."""
    for item in items:
        marked = any(item.get_closest_marker(name) for name in ("processes", "ddp", "slurm"))
        if marked or starts_processes(item):
            item.add_marker("processes")
        if item.get_closest_marker("data") and not FASHION_DEBIAN.is_dir():
            item.add_marker(
                pytest.mark.skip(reason="Debian's dataset-fashion-mnist isn't installed")
            )
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if "PYTEST_XDIST_WORKER" in os.environ:  # files in parallel: none that takes minutes comes last
        seconds: Counter[Path] = Counter()
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            seconds[item.path] += sum(COST[name] for name in COST.keys() & marks)
        items.sort(key=lambda item: -seconds[item.path])
