"""Worker processes that decode: out of reach of signals, waited for in words, surely ended."""

import atexit
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, get_worker_info

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
"""What may be sent to all processes of a run, and is the main one's alone to answer."""

PATIENCE_S = 5.0
"""How long a worker may take to end by itself."""

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
    """

    def __init__(self, batch: Any) -> None:
        self.sent = bytes(ForkingPickler.dumps(batch))

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self.sent,)


def sent(batch: Any) -> Any:
    """Collates nothing, where `__getitems__` gives a whole batch; packs it in a worker."""
    return batch if get_worker_info() is None else Parcel(batch)


# In the main process ------------------------------------------------------------------------------


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """An epoch of a loader whose `worker_init_fn` is `begin`, and whose workers are persistent."""
    if not loader.num_workers:
        yield from loader
        return
    with _signals_held():
        passing: Any = iter(loader)
    if passing not in _iterators:
        _iterators.add(passing)
        _workers.update(passing._workers)
        atexit.unregister(_end_all)  # what is registered last is done first: before torch's own
        atexit.register(_end_all)
        passing._get_data = _Patient(passing)
    yield from passing


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
        begun = time.monotonic()
        while True:
            there, data = self.iterator._try_get_data(LOOK_S)
            if there:
                return data
            if self.iterator._pin_memory and not self.iterator._pin_memory_thread.is_alive():
                raise RuntimeError("the thread that pins batches in memory has ended")
            for watcher in _watchers:
                watcher(time.monotonic() - begun)


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
    if loader._iterator is not None:
        _end(loader._iterator)


def _end(iterator: Any) -> None:
    if iterator._shutdown:
        return
    force = threading.Timer(PATIENCE_S, _kill, [iterator._workers])
    force.daemon = True
    force.start()
    # From here on a worker that is killed is no error, and torch is not to raise one.
    _remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    try:
        iterator._shutdown_workers()
    finally:
        force.cancel()
        _kill(iterator._workers)


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()  # one that has ended is left alone


def _end_all() -> None:
    """Before this process ends: Python would wait for workers that hang, and for ever."""
    for iterator in list(_iterators):
        _end(iterator)
    _kill(_workers)
