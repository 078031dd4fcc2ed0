"""Ranks that find each other, agree on what they do, and don't outlive one another."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from simclr_pl.cluster.parent import GRACE_S, LOOK_S, PARENT, is_started
from simclr_pl.core.errors import UserError
from simclr_pl.images.fingerprint import fingerprint
from simclr_pl.lightning_internals import take_over_ranks
from simclr_pl.run.config import flat
from simclr_pl.run.results import versions

NOTICE_AFTER_S = 10.0
"""Seconds after which it is said that ranks are waited for; and again after twice as long."""

LOST = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused",
    "remote process exited", "nccl error", "socket error",
)  # fmt: skip
"""Words in a collective's error when a rank at the other end is gone."""


MAY_DIFFER = ("data.root", "data.num_workers")
"""Options that may differ between machines."""

# Before -------------------------------------------------------------------------------------------


def check_meeting_place(trainer: L.Trainer) -> None:
    """Looks at where the ranks are to meet, before they wait there for half an hour.

    Raises:
        UserError: several machines and no address to meet at; an address that isn't known here; a
            port that another program has.
    """
    if dist.is_initialized() or not isinstance(trainer.strategy, DDPStrategy):
        return
    environment: Any = trainer.strategy.cluster_environment
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment):
        absent = [n for n in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if n not in os.environ]
        if absent:
            raise UserError(
                f"{' and '.join(absent)} must be set for {trainer.num_nodes} machines to find each "
                "other: start with scripts/torchrun.sh or scripts/slurm.sbatch, which do so"
            )
    if "MASTER_PORT" not in os.environ and isinstance(environment, LightningEnvironment):
        return  # ranks on this machine alone, and a port that was found free
    address, port = environment.main_address, environment.main_port
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:
        raise UserError(
            f"the address {address} of rank 0 is not known on {socket.gethostname()} ({error}): "
            "set MASTER_ADDR to a name or number that is, on all machines"
        ) from None
    # (torchrun itself may keep the place where its ranks meet.)
    if trainer.global_rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        _check_free(port)


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's own
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} of {socket.gethostname()}, where ranks are to meet, cannot be had "
                f"({error.strerror}): set MASTER_PORT to another one on all machines"
            ) from None


class Ranks(L.Callback):
    """Says what is waited for, compares what the ranks are about to do, and watches over them.

    Args:
        recipe: this rank's, as config.yaml has it.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        self.recipe = recipe
        self._met = threading.Event()
        self._over = threading.Event()
        self._children: list[subprocess.Popen[Any]] = []

    @contextmanager
    def meeting(self, trainer: L.Trainer) -> Iterator[None]:
        """A context in which the ranks meet, train, and end; with words where one doesn't.

        Raises:
            UserError: ranks that don't find each other, or of which one has died.
        """
        if trainer.world_size == 1:
            yield
            return
        check_meeting_place(trainer)
        threading.Thread(target=self._say_who_waits, args=(trainer,), daemon=True).start()
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise self._explain(error, trainer) or error from error
        finally:
            self._met.set()
            self._over.set()
            PARENT.over.set()

    def _say_who_waits(self, trainer: L.Trainer) -> None:
        start, patience = time.monotonic(), NOTICE_AFTER_S
        while not self._met.wait(patience):
            if trainer.local_rank == 0:
                place: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
                sys.stdout.write(
                    f"rank {trainer.global_rank} of {trainer.world_size} has waited for the others "
                    f"for {time.monotonic() - start:.0f} s, at {place.main_address}:"
                    f"{place.main_port}\n"
                )
                sys.stdout.flush()
            patience *= 2

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """All ranks are there."""
        self._met.set()
        if trainer.world_size == 1 or stage != "fit":
            return
        self._watch(trainer)
        about = flat(self.recipe)
        for key in MAY_DIFFER:
            about.pop(key, None)
        splits = getattr(trainer.datamodule, "splits", None)  # type: ignore[attr-defined]
        about |= {} if splits is None else {"the data": fingerprint(splits)[:12]}
        compare(about | {f"the version of {name}": v for name, v in versions().items()})

    # During -----------------------------------------------------------------------------------

    def _watch(self, trainer: L.Trainer) -> None:
        """Watches over ranks that Lightning has started, or over the one that has started this."""
        self._children = take_over_ranks(trainer)
        if self._children:
            threading.Thread(target=self._look, daemon=True).start()
        elif getattr(trainer.strategy, "cluster_environment", None) and is_started():
            PARENT.look_for(os.getppid())  # where a script has started it, not the command line

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            gone = self._gone()
            if gone and not self._over.wait(GRACE_S):  # it hangs in a collective
                sys.stderr.write(f"error: {gone}\n")
                sys.stderr.flush()
                for child in self._children:
                    child.kill()
                os._exit(1)

    def _gone(self) -> str:
        """The rank that has died and the cause; empty while all ranks are well."""
        for rank, child in enumerate(self._children, 1):
            code = child.poll()
            if code is not None and code < 0:
                name = signal.Signals(-code).name
                hint = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
                return f"rank {rank} was ended by {name}{hint}"
            if code:
                return f"rank {rank} ended with exit code {code}, for the reason that it gave"
        return ""

    def _explain(self, error: BaseException, trainer: L.Trainer) -> UserError | None:
        """The error about a lost rank, where a collective failed because of one."""
        if not any(word in str(error).lower() for word in LOST):
            return None
        end = time.monotonic() + 2
        while self._children and not self._gone() and time.monotonic() < end:
            time.sleep(0.05)
        gone = self._gone() or "the connection to another rank is lost: its own words say why"
        for child in self._children:  # they would find the others gone, and say so each
            child.kill()
        return UserError(
            f"{gone}. Training ended at step {trainer.global_step}; --resume goes on from the "
            "last checkpoint"
        )


def compare(about: dict[str, Any]) -> None:
    """Compares what ranks are about to do.

    Args:
        about: plain values by name, that must be the same everywhere.

    Raises:
        UserError: names the first rank and the first value that differ from rank 0's.
    """
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, (socket.gethostname(), about))
    _, first = everybody[0]
    for rank, (host, other) in enumerate(everybody):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{name} is {other.get(name)} on rank {rank} ({host}) and {first.get(name)} on "
                    "rank 0: all ranks need the same command, data and packages"
                )
