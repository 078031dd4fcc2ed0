"""Shared memory, through which worker processes hand batches over: is there room?"""

import shutil
from pathlib import Path

from simclr_pl.core.errors import UserError

PREFETCH = 2
"""Batches that a worker keeps ready: torch's default."""

SHARED_MEMORY = Path("/dev/shm")
"""The folder of shared memory on Linux."""

SHARED_REMEDY = (
    "give a container more shared memory (docker run --shm-size 8g), or fewer --data.num_workers, "
    "or a smaller --data.batch_size; --data.num_workers 0 needs none"
)


NEARLY = 0.5
"""Share of the free shared memory above which what is needed leaves little for anything else."""


def batches_ahead(batch_bytes: int, workers: int, batches: int) -> int:
    """How many batches of the next pass may wait beside those that workers keep ready.

    Args:
        batch_bytes: size of the largest batch.
        workers: processes, each with `PREFETCH` batches ready.
        batches: number of batches of an epoch.

    Raises:
        UserError: shared memory is too small for those of one pass: a worker would fail, or the
            system would end it.
    """
    if (free := _free(workers)) is None:
        return workers
    ready = _ready(workers, batches)
    if batch_bytes * ready > free:
        raise UserError(
            f"{workers} workers put {ready} batches of {_mib(batch_bytes)} into shared memory, "
            f"{_mib(batch_bytes * ready)} in all, and {SHARED_MEMORY} has {_mib(free)} left: "
            f"{SHARED_REMEDY}"
        )
    return min(workers, free // max(1, batch_bytes) - ready)


def little_room(batch_bytes: int, workers: int, batches: int, world: int) -> str | None:
    """A sentence where batches need more than `NEARLY` of the shared memory that is free.

    Args:
        batch_bytes: as `batches_ahead` takes them.
        workers: likewise, of a device.
        batches: likewise.
        world: devices of this machine, which share the memory.
    """
    free, needed = _free(workers), batch_bytes * _ready(workers, batches) * world
    if free is None or needed <= NEARLY * free:
        return None
    return (
        f"batches need {_mib(needed)} of shared memory, and {SHARED_MEMORY} has {_mib(free)} left, "
        f"which is nearly too little: {SHARED_REMEDY}"
    )


def _ready(workers: int, batches: int) -> int:
    """Batches of a pass that lie in shared memory at a time."""
    return min(PREFETCH * workers, batches) + 1  # and one that is being trained on


def _free(workers: int) -> int | None:
    """Bytes of shared memory that are free; `None` where no worker needs some, or nobody knows."""
    known = workers and SHARED_MEMORY.is_dir()
    return shutil.disk_usage(SHARED_MEMORY).free if known else None


def no_room(error: Exception) -> UserError:
    """The error of a batch that could not be handed to the main process."""
    if is_of_handles(error):
        return UserError(
            "a batch cannot be handed over, too many files are open: raise the limit "
            "(ulimit -n 4096), or give --data.num_workers 0"
        )
    there = ""
    if SHARED_MEMORY.is_dir():
        room = shutil.disk_usage(SHARED_MEMORY)
        there = f", {SHARED_MEMORY} has {_mib(room.total)}, of which {_mib(room.free)} are free"
    why = str(error).splitlines()[0]
    return UserError(f"a batch cannot be put into shared memory ({why}){there}: {SHARED_REMEDY}")


def is_of_handles(error: Exception) -> bool:
    """Whether the limit on open files was reached ("ancdata": a handle could not be received)."""
    return any(words in str(error) for words in ("Too many open files", "items of ancdata"))


def _mib(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"
