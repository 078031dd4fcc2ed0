"""The private names of Lightning and of torch's DataLoader that the rings around the core use.

Those of the core are in `core.lightning_internals`, and there are no others. Each function says why
the public API doesn't serve. `tests/test_lightning_internals.py` looks for every name on real
objects, and says which one a new version has taken away.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

if TYPE_CHECKING:
    import lightning as L

# Lightning: classes ---------------------------------------------------------------------------


def parser_of(cli: Any, command: str) -> Any:
    """The parser of one command of a LightningCLI: its public `parser` is that of all."""
    return cli._parser(command)


# Lightning: before training -------------------------------------------------------------------


def take_over_ranks(trainer: "L.Trainer") -> "list[subprocess.Popen[Any]]":
    """The ranks that Lightning has started, which it watches no longer.

    Its own watch kills without a word, and has no switch: it looks at the list that is left empty.
    The launcher keeps a copy, to end the ranks by.
    """
    launcher: Any = trainer.strategy.launcher
    watched: list[subprocess.Popen[Any]] = getattr(launcher, "procs", [])
    started = list(watched)
    if started:
        launcher.procs = list(started)
        watched.clear()
    return started


def leave_signals_alone(trainer: "L.Trainer") -> None:
    """Takes Lightning's own answers to signals out of a training, which no option does.

    Its handler runs a collective wherever the rank is, which hangs, and its loop broadcasts and
    reads back a flag before every step, for which an accelerator has to wait.
    """
    connector: Any = trainer._signal_connector
    loop: Any = trainer.fit_loop.epoch_loop
    connector.register_signal_handlers = loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None:
    pass


# Lightning: where a training is ---------------------------------------------------------------


def stops_early(trainer: "L.Trainer") -> bool:
    """Whether `should_stop` is heeded: not before `min_epochs` and `min_steps`."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def is_epoch_whole(trainer: "L.Trainer") -> bool:
    """Whether the step just taken is its epoch's last.

    `is_last_batch` is of the batch, and is not asked anew where an epoch has been broken off.
    """
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validates_behind_step(trainer: "L.Trainer") -> bool:
    """Whether a validation follows the step just taken: no hook or attribute says so before."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def validate_also(trainer: "L.Trainer", due: Callable[[], bool]) -> None:
    """Has Lightning validate behind further steps; only the first call for a trainer counts.

    `check_val_every_n_epoch` and `val_check_interval` know no "and at the end".

    Args:
        trainer: whose loop it is.
        due: whether to validate behind the step just taken.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    if "_should_check_val_fx" in vars(loop):
        return
    original = loop._should_check_val_fx
    loop._should_check_val_fx = lambda fetcher: original(fetcher) or due()


def resumes_behind_step(trainer: "L.Trainer") -> bool:
    """Whether the loop has just been restored behind a step, whose validation came before."""
    loop: Any = trainer.fit_loop.epoch_loop
    return bool(loop.restarting and loop.restarted_on_last)


def validate_now(trainer: "L.Trainer") -> None:
    """Validates in the midst of a fit: `Trainer.validate` would begin another task.

    Loggers count the step that has just been taken.
    """
    with a_batch_back(trainer):
        trainer.validating = True
        try:
            trainer.fit_loop.epoch_loop.val_loop.run()
        finally:
            trainer.training = True


# Lightning: counters in a checkpoint ----------------------------------------------------------


@contextmanager
def a_batch_back(trainer: "L.Trainer") -> Iterator[None]:
    """A context in which Lightning has not counted the batch it took last, as within its step.

    Loggers' steps and the checkpoint's state follow this counter, which has no public name.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped -= 1
    try:
        yield
    finally:
        loop._batches_that_stepped += 1


@contextmanager
def within_epoch(trainer: "L.Trainer") -> Iterator[None]:
    """A context in which an epoch that was broken off counts as such: Lightning has ended it."""
    progress: Any = trainer.fit_loop.epoch_progress
    counters = (progress.total, progress.current)
    for counter in counters:
        counter.processed -= 1
    try:
        with a_batch_back(trainer):
            yield
    finally:
        for counter in counters:
            counter.processed += 1


def validation_as_not_begun(trainer: "L.Trainer") -> None:
    """Sets the validation's counters to a state from which a resume validates from the start.

    As in the midst of a first batch: that is how Lightning knows a validation to be done.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    total = progress.total
    total.completed = total.processed = total.completed - progress.current.completed
    total.ready = total.started = total.completed + 1
    progress.reset_on_run()


def forget_broken_off_validation(trainer: "L.Trainer") -> None:
    """Takes the batch back that `validation_as_not_begun` has added, in the run that resumes."""
    total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    if total.ready > total.completed:
        total.ready = total.started = total.completed


def save_best_if(callback: Any, due: "Callable[[L.Trainer], bool]") -> None:
    """Has a ModelCheckpoint save by its number only where a function says so.

    Its own hook raises where the number isn't there, which no option turns off.

    Args:
        callback: whose `monitor` is set.
        due: whether to save now.
    """
    save = callback._save_topk_checkpoint

    def save_if_due(trainer: "L.Trainer", candidates: Any) -> None:
        if due(trainer):
            save(trainer, candidates)

    callback._save_topk_checkpoint = save_if_due


# Lightning: numbers ---------------------------------------------------------------------------


def logs_this_step(trainer: "L.Trainer") -> bool:
    """Whether Lightning hands this step's numbers to loggers, which it does behind all hooks."""
    return trainer._logger_connector.should_update_logs


def numbers_to_log(trainer: "L.Trainer") -> dict[str, Any]:
    """What loggers are about to get: `logged_metrics` has it when they have got it."""
    return dict(trainer._logger_connector.metrics["log"])


# torch: a loader's worker processes -----------------------------------------------------------


def running_iterator(loader: DataLoader[Any]) -> Any:
    """The iterator whose workers persist, or `None`: `iter(loader)` would begin an epoch."""
    return loader._iterator


def is_worker_iterator(thing: Any) -> bool:
    """Whether it is a loader's iterator with worker processes; its class has no public name."""
    return isinstance(thing, _MultiProcessingDataLoaderIter)


def worker_processes(iterator: Any) -> list[BaseProcess]:
    """An iterator's worker processes, which nothing public gives."""
    workers: list[BaseProcess] = iterator._workers
    return workers


def wait_by(iterator: Any, wait: Callable[[], Any]) -> None:
    """Has an iterator get its next answer by a function: torch waits in silence, for ever or not.

    Args:
        iterator: with workers.
        wait: returns what a worker has sent.
    """
    iterator._get_data = wait


def send_more(iterator: Any) -> None:
    """Fills workers' queues: by itself an iterator sends one item for each result."""
    room = iterator._prefetch_factor * iterator._num_workers - len(iterator._task_info)
    for _ in range(room):
        iterator._try_put_index()


def answer_within(iterator: Any, seconds: float) -> tuple[bool, Any]:
    """Whether a worker's answer has come within some seconds, and the answer."""
    answer: tuple[bool, Any] = iterator._try_get_data(seconds)
    return answer


def has_lost_pinning(iterator: Any) -> bool:
    """Whether the thread that pins batches in memory has ended: nothing would come any more."""
    return bool(iterator._pin_memory and not iterator._pin_memory_thread.is_alive())


def ignore_worker_deaths(iterator: Any) -> None:
    """Takes the workers from those whose death torch raises an error about, wherever it may be."""
    _remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False


def heeds_worker_deaths(iterator: Any) -> bool:
    """Whether `ignore_worker_deaths` is still to be called."""
    return bool(iterator._worker_pids_set)


def has_ended(iterator: Any) -> bool:
    """Whether an iterator has ended its workers."""
    return bool(iterator._shutdown)


def count_as_ended(iterator: Any) -> None:
    """Keeps an iterator that could not start its workers from ending those it doesn't have."""
    iterator._shutdown = True


def end_iterator(iterator: Any) -> None:
    """Ends an iterator's workers now: torch leaves that to the garbage collector."""
    iterator._shutdown_workers()
