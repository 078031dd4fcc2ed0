"""A callback that stops a process at a chosen moment of its run, so that it can be killed there.

The moment, and a file to be made when it has come, are named by the environment. Without them the
callback does nothing: one command line serves the run left alone, the killed one and its resume.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

MOMENT, FLAG = "PAUSE_AT", "PAUSE_FLAG"

PATIENCE = 120.0
"""Seconds to wait for the kill."""


class Pause(L.Callback):
    """Waits at the moment that `PAUSE_AT` names, such as `validation 2` or `whole 5`.

    `start N` is before training, `step N` in the run's Nth step, `epoch N` at the end of its Nth
    epoch, `validation N` inside the Nth validation of this process. At `part N` the Nth checkpoint
    that it writes is partly on disk, at `whole N` the Nth `last.ckpt` is all there but not yet in
    its place, at `renamed N` it has just got there.
    """

    def __init__(self) -> None:
        place, _, count = os.environ.get(MOMENT, "").partition(" ")
        self.place, self.left = place, int(count or 0)
        if place in ("part", "whole", "renamed"):
            sys.addaudithook(Writing(place, self.left).see)

    def on_fit_start(self, *args: Any) -> None:
        if self.place == "start":
            wait()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.place == "step" and trainer.global_step == self.left - 1:
            wait()

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.place == "epoch" and trainer.current_epoch == self.left - 1:
            wait()

    def on_validation_batch_end(self, *args: Any) -> None:
        if self.place == "validation" and args[4] == 0:  # of two batches
            self.left -= 1
            if self.left == 0:
                wait()


class Writing:
    """Sees checkpoints being written, as the interpreter does: files opened and renamed."""

    def __init__(self, place: str, count: int) -> None:
        self.place, self.left = place, count
        self.event = "open" if place == "part" else "os.rename"
        self.path = Path()
        self.next_is_it = self.blind = False

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's audit hook, called before the thing itself is done."""
        if self.blind:
            return
        if self.next_is_it:  # whatever it is, the rename is done
            self.reach()
        if event != self.event or not _is_ours(event, args):
            return
        self.left -= 1
        if self.left == 0 and self.place == "part":
            self.path = Path(args[0])
            sys.setprofile(self.step)
        elif self.left == 0:
            self.next_is_it = self.place == "renamed"
            if self.place == "whole":
                self.reach()

    def step(self, frame: FrameType, event: str, arg: object) -> None:
        """Python's profile hook, called between any two calls of what writes."""
        if self.path.exists() and self.path.stat().st_size:
            self.reach()

    def reach(self) -> None:
        self.blind = True  # what is done from here on is not the run's
        sys.setprofile(None)
        wait()


def _is_ours(event: str, args: tuple[Any, ...]) -> bool:
    """Whether a checkpoint is opened for writing, or a whole one becomes `last.ckpt`."""
    if event == "open":
        return ".ckpt" in str(args[0]) and "w" in str(args[1])
    return str(args[1]).endswith("last.ckpt")


def wait() -> None:
    """Says that the moment has come, and waits to be killed, or to be told to stop."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    arrived: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        _tell(number, arrived)
    Path(os.environ[FLAG]).touch()
    end = time.monotonic() + PATIENCE
    while not arrived and time.monotonic() < end:
        time.sleep(0.01)
    if not arrived:
        os._exit(3)  # nobody came: no test may take this for a run that goes on
    time.sleep(0.1)  # there may be more of them


def _tell(number: int, arrived: list[int]) -> None:
    """Notes a signal before whoever listens to it does what they do."""
    listening = signal.getsignal(number)

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if callable(listening):
            listening(number, frame)

    signal.signal(number, note)
