"""Worker processes that decode: out of reach of signals, waited for in words, surely ended."""

import atexit
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, active_children
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from simclr_pl.core.errors import UserError
from simclr_pl.lightning_internals import (
    answer_within,
    count_as_ended,
    end_iterator,
    has_ended,
    has_lost_pinning,
    heeds_worker_deaths,
    ignore_worker_deaths,
    is_worker_iterator,
    running_iterator,
    wait_by,
    worker_processes,
)

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
"""What may be sent to all processes of a run, and is the main one's alone to answer."""

PATIENCE_S = 5.0
"""How long a worker may take to end by itself."""

NOTICE_S = 60.0
"""After how long without a batch it is said that one is waited for, and again after twice that."""

PREFETCH = 2
"""Batches that a worker has ready, as torch has it."""

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux has it."""

LOOK_S = 1.0
"""How often a worker looks for the process that started it, and that one for a batch."""

_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
_watchers: list[Callable[[float], None]] = []


# In the worker ------------------------------------------------------------------------------------


def begin(worker: int) -> None:
    """Leaves signals to the main process, and sees to it that this one does not outlive that.

    A `worker_init_fn`: torch sets its own answers to signals before.

    Args:
        worker: its number, which changes nothing.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    """Ends this process, whatever it is reading, when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


class Parcel:
    """A batch on its way out of a worker, which arrives as that batch.

    A worker's queue is emptied by a thread of its own, where what goes wrong is written to standard
    error and the batch is lost: it would be waited for for ever. Here tensors are put into shared
    memory before the batch is queued, so that an error reaches the main process.

    Args:
        batch: anything that can be pickled.

    Raises:
        UserError: there is no room in shared memory, or too many files are open.
    """

    def __init__(self, batch: Any) -> None:
        try:
            self.sent = bytes(ForkingPickler.dumps(batch))
        except (OSError, RuntimeError) as error:
            raise no_room(error) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self.sent,)


def sent(batch: Any) -> Any:
    """Collates nothing, where `__getitems__` gives a whole batch; packs it in a worker."""
    return batch if get_worker_info() is None else Parcel(batch)


# Room for them ----------------------------------------------------------------------------------


_SHARED = (
    "give a container more shared memory (docker run --shm-size 8g), or fewer --data.num_workers, "
    "or a smaller --data.batch_size; --data.num_workers 0 needs none"
)


def check_room(batch_bytes: int, workers: int, batches: int) -> None:
    """Whether the batches that workers have ready at a time have room in shared memory.

    Args:
        batch_bytes: of the largest batch.
        workers: processes, each with `PREFETCH` batches ready.
        batches: of an epoch.

    Raises:
        UserError: they have not; a worker would fail, or be ended by the system.
    """
    ready = min(PREFETCH * workers, batches) + 1  # and one that is being trained on
    if not workers or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if batch_bytes * ready > free:
        raise UserError(
            f"{workers} workers put {ready} batches of {_mib(batch_bytes)} into shared memory, "
            f"{_mib(batch_bytes * ready)} in all, and {SHARED_MEMORY} has {_mib(free)} left: "
            f"{_SHARED}"
        )


def no_room(error: Exception) -> UserError:
    """The sentence about a batch that could not be handed over."""
    if _is_of_handles(error):
        return UserError(
            "a batch cannot be handed over, too many files are open: raise the limit "
            "(ulimit -n 4096), or give --data.num_workers 0"
        )
    there = ""
    if SHARED_MEMORY.is_dir():
        room = shutil.disk_usage(SHARED_MEMORY)
        there = f", {SHARED_MEMORY} has {_mib(room.total)}, of which {_mib(room.free)} are free"
    why = str(error).splitlines()[0]
    return UserError(f"a batch cannot be put into shared memory ({why}){there}: {_SHARED}")


def _is_of_handles(error: Exception) -> bool:
    """Whether it is the limit on open files; a handle that found no place is said oddly."""
    return any(words in str(error) for words in ("Too many open files", "items of ancdata"))


def _mib(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"


# In the main process ------------------------------------------------------------------------------


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """An epoch of a loader whose `worker_init_fn` is `begin`, and whose workers are persistent."""
    if not loader.num_workers:
        yield from loader
        return
    others = active_children()
    try:
        # Workers that are there already may be waited for, and a signal is not to wait with them.
        with _signals_held() if running_iterator(loader) is None else nullcontext():
            passing: Any = iter(loader)
    except OSError as error:
        _kill(worker for worker in active_children() if worker not in others)
        _abandon(error)
        if _is_of_handles(error):
            raise no_room(error) from error
        raise
    if passing not in _iterators:
        _iterators.add(passing)
        _workers.update(worker_processes(passing))
        atexit.unregister(_end_all)  # what is registered last is done first: before torch's own
        atexit.register(_end_all)
        # Torch would raise an error about a worker that has died in the midst of anything.
        ignore_worker_deaths(passing)
        wait_by(passing, _Patient(passing))
    yield from passing


def _abandon(error: OSError) -> None:
    """Keeps the iterator that could not start its workers from ending what it doesn't have."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        half_made = frame.f_locals.get("self")
        if is_worker_iterator(half_made):
            count_as_ended(half_made)


@contextmanager
def _signals_held() -> Iterator[None]:
    """A context that signals wait for the end of: between its birth and `begin` a worker would die.

    Processes inherit what is held.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Patient:
    """Waits for a worker's next answer, and tells watchers how long that has been."""

    def __init__(self, iterator: Any) -> None:
        self.iterator = weakref.proxy(iterator)  # a cycle would leave its end to the collector

    def __call__(self) -> Any:
        begun, notice = time.monotonic(), NOTICE_S
        while True:
            try:
                there, data = answer_within(self.iterator, LOOK_S)
            except (EOFError, OSError, RuntimeError) as error:
                raise _explained(error, worker_processes(self.iterator)) from error
            if there:
                return data
            waited = time.monotonic() - begun
            if waited > notice:
                _say_waiting(waited, worker_processes(self.iterator))
                notice *= 2
            if has_lost_pinning(self.iterator):
                raise RuntimeError("the thread that pins batches in memory has ended")
            for watcher in _watchers:
                watcher(waited)


def _say_waiting(seconds: float, workers: list[BaseProcess]) -> None:
    """A slow disk and a lost one look the same for a while: it is said, and gone on."""
    alive = sum(worker.is_alive() for worker in workers)
    sys.stdout.write(
        f"no images for {seconds:.0f} s: {alive} worker processes are still reading or decoding; "
        "if this goes on, look at the disk that the images are on\n"
    )
    sys.stdout.flush()


def _explained(error: Exception, workers: list[BaseProcess]) -> Exception:
    """A sentence about what has become of a worker, or of what it has sent."""
    if isinstance(error, EOFError | ConnectionError | FileNotFoundError):  # it may be dying yet
        wait([worker.sentinel for worker in workers], PATIENCE_S)
    died = next((worker for worker in workers if worker.exitcode), None)
    if died is None:
        return no_room(error) if _is_of_handles(error) else error
    code = died.exitcode or 0
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    hints = {
        "SIGKILL": "the system does so when memory runs out: give fewer --data.num_workers",
        "SIGBUS": f"shared memory is full, or a file has shrunk: {_SHARED}",
    }
    hint = hints.get(name, "--data.num_workers 0 shows where")
    return UserError(f"a worker process that decodes images was ended by {name}: {hint}")


@contextmanager
def told_of_waiting(watcher: Callable[[float], None]) -> Iterator[None]:
    """A context in which a function is called about each second that a batch has not come.

    Args:
        watcher: is given the seconds so far; it may raise, which ends the wait.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def end_workers(loader: DataLoader[Any]) -> None:
    """Ends a loader's persistent worker processes, those that hang in a read by force.

    Left to the garbage collector, each is waited for in vain for 5 seconds: their queues may be
    collected first.
    """
    iterator = running_iterator(loader)
    if iterator is not None:
        _end(iterator)


def _end(iterator: Any) -> None:
    if has_ended(iterator):
        return
    force = threading.Timer(PATIENCE_S, _kill, [worker_processes(iterator)])
    force.daemon = True
    force.start()
    if heeds_worker_deaths(iterator):
        ignore_worker_deaths(iterator)
    try:
        end_iterator(iterator)
    finally:
        force.cancel()
        _kill(worker_processes(iterator))


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()  # one that has ended is left alone


def _end_all() -> None:
    """Before this process ends: Python would wait for workers that hang, and for ever."""
    for iterator in list(_iterators):
        _end(iterator)
    _kill(_workers)
