"""Worker processes that call a function of each item: safe from signals, and always ended."""

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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, active_children
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

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
"""Signals that may be sent to all processes of a run, and that the main process alone answers."""

WORKER_EXIT_TIMEOUT_S = 5.0
"""How long a worker may take to end by itself."""

NOTICE_S = 60.0
"""Wait for a batch after which a line says so; the next line comes after twice that time."""

PREFETCH = 2
"""Batches that a worker keeps ready: torch's default."""

SHARED_MEMORY = Path("/dev/shm")
"""The folder of shared memory on Linux."""

LOOK_S = 1.0
"""Pause between two looks: of a worker for its parent process, of the parent for a batch."""

_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
_watchers: list[Callable[[float], None]] = []


# In the worker ------------------------------------------------------------------------------------


def _begin(worker: int) -> None:
    """Leaves signals to the main process, and ends this process with that one.

    As a `worker_init_fn` it is called after torch has set its own answers to signals.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    """Ends this worker, whatever it is reading, when its parent process is gone."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


class Parcel:
    """A batch on its way out of a worker; unpickling a parcel gives the batch.

    A thread empties a worker's queue. An error in this thread loses the batch, and the main process
    would wait for ever. A parcel puts tensors into shared memory before it is queued, so that an
    error reaches the main process.

    Args:
        batch: anything that can be pickled.

    Raises:
        UserError: shared memory is full, or too many files are open.
    """

    def __init__(self, batch: Any) -> None:
        try:
            self.sent = bytes(ForkingPickler.dumps(batch))
        except (OSError, RuntimeError) as error:
            raise no_room(error) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self.sent,)


def _sent(result: Any) -> Any:
    """A `collate_fn` that changes nothing, and puts results of a worker into parcels."""
    return result if get_worker_info() is None else Parcel(result)


class _Results(Dataset[Any]):
    """What a function returns of each item."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        return self.function(item)


# Shared memory ------------------------------------------------------------------------------------


_SHARED = (
    "give a container more shared memory (docker run --shm-size 8g), or fewer --data.num_workers, "
    "or a smaller --data.batch_size; --data.num_workers 0 needs none"
)


def check_room(batch_bytes: int, workers: int, batches: int) -> None:
    """Whether shared memory has room for the batches that workers keep ready.

    Args:
        batch_bytes: size of the largest batch.
        workers: processes, each with `PREFETCH` batches ready.
        batches: number of batches of an epoch.

    Raises:
        UserError: shared memory is too small: a worker would fail, or the system would end it.
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
    """The error of a batch that could not be handed to the main process."""
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
    """Whether the limit on open files was reached ("ancdata": a handle could not be received)."""
    return any(words in str(error) for words in ("Too many open files", "items of ancdata"))


def _mib(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"


# In the main process ------------------------------------------------------------------------------


def loader_of(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, *, pinned: bool = False
) -> DataLoader[Any]:
    """A loader of what a function returns of each item, in order, for `batches_of`.

    Args:
        function: is called in the workers; with spawned ones it has to be pickled.
        items: its arguments. A pass takes those that are there when the pass begins.
        workers: processes, which stay until `end_workers`; with 0 this process does the work.
        pinned: whether tensors are copied to pinned memory, for a GPU.
    """
    return DataLoader(
        _Results(function),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        collate_fn=_sent,
        worker_init_fn=_begin,
        persistent_workers=workers > 0,
        pin_memory=pinned,
    )


def results_of(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int
) -> Generator[Any, None, None]:
    """Yields what a function returns of each item, in order, and then ends the workers.

    Args:
        function: see `loader_of`.
        items: its arguments.
        workers: processes.
    """
    loader = loader_of(function, items, workers)
    try:
        yield from batches_of(loader)
    finally:
        end_workers(loader)


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yields the results of one pass of a loader that `loader_of` made."""
    if not loader.num_workers:
        yield from loader
        return
    others = active_children()
    try:
        # A start of workers holds signals back. Where workers run already, the wait may be long.
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
        atexit.unregister(_end_all)  # registered last, `_end_all` runs before torch's own handler
        atexit.register(_end_all)
        # Torch's handler of SIGCHLD would raise an error at any point of the main process.
        ignore_worker_deaths(passing)
        wait_by(passing, _Patient(passing))
    yield from passing


def _abandon(error: OSError) -> None:
    """Keeps an iterator that could not start its workers from ending workers it doesn't have."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        half_made = frame.f_locals.get("self")
        if is_worker_iterator(half_made):
            count_as_ended(half_made)


@contextmanager
def _signals_held() -> Iterator[None]:
    """A context whose end signals wait for: a worker would die of them before `_begin`.

    Processes inherit which signals are held.
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
    """Waits for a worker's next answer, and tells watchers how long the wait has been."""

    def __init__(self, iterator: Any) -> None:
        self.iterator = weakref.proxy(iterator)  # in a cycle the iterator would outlive its loader

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
    """Prints that images are waited for: a slow disk and a lost one look the same for a while."""
    alive = sum(worker.is_alive() for worker in workers)
    sys.stdout.write(
        f"no images for {seconds:.0f} s: {alive} worker processes are still reading or decoding; "
        "if this goes on, look at the disk that the images are on\n"
    )
    sys.stdout.flush()


def _explained(error: Exception, workers: list[BaseProcess]) -> Exception:
    """The error with the signal or exit code of the worker that died, or about open files."""
    if isinstance(error, EOFError | ConnectionError | FileNotFoundError):  # a worker is dying
        dead = wait([worker.sentinel for worker in workers], WORKER_EXIT_TIMEOUT_S)
        for worker in workers:
            if worker.sentinel in dead:
                worker.join()  # its exit code comes a moment after its files are closed
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
    """A context in which a function is called about once a second while no batch comes.

    Args:
        watcher: called with the seconds of the wait so far; an error that it raises ends the wait.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def end_workers(loader: DataLoader[Any]) -> None:
    """Ends a loader's worker processes; workers that hang in a read are killed.

    The garbage collector would wait 5 seconds for each worker, since it may collect their queues
    first.
    """
    iterator = running_iterator(loader)
    if iterator is not None:
        _end(iterator)


def _end(iterator: Any) -> None:
    if has_ended(iterator):
        return
    force = threading.Timer(WORKER_EXIT_TIMEOUT_S, _kill, [worker_processes(iterator)])
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
        worker.kill()  # does nothing to a worker that has ended


def _end_all() -> None:
    """Ends all workers before this process ends: Python would wait for ever for one that hangs."""
    for iterator in list(_iterators):
        _end(iterator)
    _kill(_workers)
