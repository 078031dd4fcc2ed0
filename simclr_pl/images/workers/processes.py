"""Worker processes that call a function of each item: safe from signals, and always ended."""

import atexit
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, active_children
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader, Dataset

from simclr_pl.core.errors import UserError
from simclr_pl.images.workers.room import SHARED_REMEDY, is_of_handles, no_room
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
    sys.excepthook = _say
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an error of a thread, unless the other end of a connection is gone.

    A thread of Python's own hands tensors over, and prints such an error where the main process has
    just been killed. A main process that lives says itself what it has not got.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


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


# In the main process ------------------------------------------------------------------------------


def loader_of(
    results: Dataset[Any], items: Iterable[Any], workers: int, *, pinned: bool = False
) -> DataLoader[Any]:
    """A loader of the results of items, in order, for `start`.

    Args:
        results: works on an item when it is asked for it, in a worker.
        items: are asked for when a worker has room for one.
        workers: processes, one at least, which stay until `end_workers`.
        pinned: whether tensors are copied to pinned memory, for a GPU.
    """
    return DataLoader(
        results,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        collate_fn=Parcel,
        worker_init_fn=_begin,
        persistent_workers=True,
        pin_memory=pinned,
    )


def start(loader: DataLoader[Any]) -> None:
    """Starts the workers of a loader that `loader_of` made.

    Raises:
        UserError: too many files are open.
    """
    others = active_children()
    try:
        with _signals_held():
            passing: Any = iter(loader)
    except OSError as error:
        _kill(worker for worker in active_children() if worker not in others)
        _abandon(error)
        if is_of_handles(error):
            raise no_room(error) from error
        raise
    _iterators.add(passing)
    _workers.update(worker_processes(passing))
    atexit.unregister(_end_all)  # registered last, `_end_all` runs before torch's own handler
    atexit.register(_end_all)
    # Torch's handler of SIGCHLD would raise an error at any point of the main process.
    ignore_worker_deaths(passing)
    wait_by(passing, _Patient(passing))


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
        return no_room(error) if is_of_handles(error) else error
    code = died.exitcode or 0
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    hints = {
        "SIGKILL": "the system does so when memory runs out: give fewer --data.num_workers",
        "SIGBUS": f"shared memory is full, or a file has shrunk: {SHARED_REMEDY}",
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
