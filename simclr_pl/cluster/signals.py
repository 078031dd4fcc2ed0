"""SIGTERM, SIGUSR1, SIGHUP: a training stops at a step's end, on all ranks, with a checkpoint."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from simclr_pl.cluster.slurm import Restarts

CLUSTERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that a cluster sends before it takes a machine away (Windows has SIGTERM alone)."""

SIGNALS = (*CLUSTERS, signal.SIGHUP) if hasattr(signal, "SIGHUP") else CLUSTERS
"""Those of clusters, and the signal of a terminal that is closed."""


class StopRequest:
    """Remembers that a signal came, and lets all ranks learn of it at the same step.

    The handler only sets a flag. Anything more could interrupt any operation, at a different point
    on each rank. At each step's end the ranks begin to add up their flags, on the CPU and beside
    the training, and look at the sum at the next one: nobody waits, and all stop at one step.

    Before training there is nothing to save: there a signal is an interrupt, as Ctrl-C is.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.agreed = False
        """Whether all ranks know that they are to stop."""
        self.how_to_go_on = ""
        """Options to add to the command that was stopped; none where it has them."""
        self.restarts: Restarts | None = None
        """The Slurm job's restarts, known once the checkpoint to resume from is read."""
        self.training = False
        self._group: Any = None
        self._sum: tuple[Any, torch.Tensor] | None = None  # on its way, and where it arrives

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals, and gives them back as they were."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        # (`nohup` ignores SIGHUP, and a script's `&` SIGINT: so it is to stay.)
        heeded = [
            number
            for number in (*SIGNALS, signal.SIGINT)
            if number in CLUSTERS or signal.getsignal(number) is not signal.SIG_IGN
        ]
        with handled(heeded, self._handle):
            yield

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.signal is None:
                raise KeyboardInterrupt
            return  # it is on its way out already, and says so
        first, self.signal = self.signal is None, number
        if first and not self.training:
            raise KeyboardInterrupt

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.signal).name if self.signal else "a signal to another rank"

    def begin(self, trainer: L.Trainer) -> None:
        """From now on a signal waits for a step's end."""
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        self.training = True

    def ask(self) -> bool:
        """Whether to stop; asked by all ranks equally often."""
        if self.agreed or self._group is None:
            self.agreed = self.agreed or self.signal is not None
            return self.agreed
        if self._sum is not None:
            arriving, total = self._sum
            arriving.wait()
            self.agreed = bool(total)
        total = torch.tensor(int(self.signal is not None))
        self._sum = dist.all_reduce(total, group=self._group, async_op=True), total
        return self.agreed


@contextmanager
def handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any]
) -> Iterator[None]:
    """A context in which signals have a handler; behind it they have their own again.

    Args:
        numbers: of the signals.
        handler: as `signal.signal` takes it.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():  # `None` where a C library has put one
            signal.signal(number, signal.SIG_DFL if own is None else own)
