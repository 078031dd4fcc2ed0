"""Real ranks for tests: processes in a gloo group, where no failure of theirs goes unnoticed."""

import inspect
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

START = 120.0
"""Seconds that ranks have to import what they need and to find each other."""

GRACE = 0.5
"""Seconds after a failure in which other ranks may tell theirs."""

LEAVE = b"leave"

# Ranks are forked from a clean server that has paid for the imports once: 2 to 5 seconds a rank.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["simclr_pl.commands.fit", "timm", "sklearn.datasets"])


class RankError(AssertionError):
    """A rank raised, died, or didn't come to an end."""


def ranks(world: int, function: Callable[..., T], *args: Any, timeout: float = 60) -> list[T]:
    """Runs `function(*args)` in `world` processes that form a gloo group, with a thread each.

    The environment is that of `torchrun`, so that a Lightning trainer with `strategy="ddp"` works
    in there as well.

    Args:
        world: number of ranks.
        function: of a module; it learns its rank from `torch.distributed`.
        args: what it is called with, the same on every rank.
        timeout: seconds that all of it may take, from when the ranks have found each other.

    Returns:
        What each rank returned, in the order of ranks.

    Raises:
        RankError: with each failed rank's traceback, exit code, or that it hangs. No rank
            outlives this call.
    """
    with tempfile.TemporaryDirectory() as folder:
        team = [
            _start(rank, world, Path(folder) / "store", function, args) for rank in range(world)
        ]
        try:
            return _values(team, timeout)
        finally:
            for rank in team:
                rank.process.kill()
                rank.process.join()
                rank.pipe.close()


class _Rank(NamedTuple):
    process: ForkServerProcess
    pipe: Connection
    messages: dict[str, Any]  # "up", "value" or "error"

    def ended(self) -> bool:
        return self.process.exitcode is not None

    def hear(self) -> None:
        """Takes in what the rank has sent."""
        try:
            while self.pipe.poll():
                self.messages.update(pickle.loads(self.pipe.recv_bytes()))
        except (EOFError, ConnectionResetError):
            pass  # it has gone: its exit code says how

    def failure(self) -> str | None:
        """What is wrong with the rank, as far as is known by now."""
        ended = self.ended()  # asked first: a rank that has ended has sent all that it ever will
        self.hear()
        if "error" in self.messages:
            return f"raised:\n{self.messages['error']}"
        if self.process.exitcode:
            return f"died with exit code {self.process.exitcode}"
        return "ended without a result" if ended and "value" not in self.messages else None


def _start(
    rank: int, world: int, store: Path, function: Callable[..., Any], args: tuple[Any, ...]
) -> _Rank:
    # Where the function's module is found, whatever way pytest has imported it.
    levels = function.__module__.count(".")
    root = str(Path(inspect.getfile(function)).resolve().parents[levels])
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(
        target=_main,
        args=(rank, world, store, theirs, root, pickle.dumps((function, args))),
        daemon=True,
    )
    process.start()
    theirs.close()
    return _Rank(process, ours, {})


def _values(team: list[_Rank], timeout: float) -> list[Any]:
    late = f"hangs: no end after {timeout:g} s"
    _wait_for(team, START, lambda rank: "up" in rank.messages, "hasn't found the others")
    _wait_for(team, timeout, lambda rank: "value" in rank.messages, late)
    for rank in team:
        with suppress(OSError):  # one that has died meanwhile is found out below
            rank.pipe.send_bytes(LEAVE)
    _wait_for(team, timeout, _Rank.ended, late)
    return [rank.messages["value"] for rank in team]


def _wait_for(
    team: list[_Rank], timeout: float, done: Callable[[_Rank], bool], otherwise: str
) -> None:
    """Waits until all ranks are done, or raises with what is wrong with which."""
    deadline = time.monotonic() + timeout
    while True:
        # Asked before their messages are taken in: what is known of these is then complete.
        over = time.monotonic() > deadline or all(map(_Rank.ended, team))
        failures = [rank.failure() for rank in team]
        if any(failures):
            # The first to be heard of is often one that lost its peer, not the one that died.
            deadline = min(deadline, time.monotonic() + GRACE)
        elif all(map(done, team)):
            return
        if over:
            break
        wait([rank.process.sentinel for rank in team if not rank.ended()], 0.02)
    if not any(failures):
        failures = [None if done(rank) else otherwise for rank in team]
    raise RankError("\n".join(f"rank {i} {what}" for i, what in enumerate(failures) if what))


def _main(rank: int, world: int, store: Path, pipe: Connection, root: str, task: bytes) -> None:
    torch.set_num_threads(1)
    os.environ.update(_torchrun(rank, world))
    try:
        dist.init_process_group(
            "gloo",
            init_method=store.as_uri(),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=START),
        )
        sys.path.append(root)
        function, args = pickle.loads(task)
        pipe.send_bytes(pickle.dumps({"up": True}))
        # Plain pickles: torch's own way to hand tensors over needs the sender to live on.
        pipe.send_bytes(pickle.dumps({"value": function(*args)}))
        # Gloo's other ranks don't take it well when one of them leaves early.
        assert pipe.recv_bytes() == LEAVE
        dist.destroy_process_group()
    except BaseException:
        pipe.send_bytes(pickle.dumps({"error": traceback.format_exc()}))
        raise SystemExit(1) from None


def _torchrun(rank: int, world: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # nobody connects: the group is there already
        "TORCHELASTIC_RUN_ID": "tests",
    }
