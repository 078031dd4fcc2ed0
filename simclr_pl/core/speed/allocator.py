"""Memory that is freed is kept: the tensors of a step are as large in the next one."""

import ctypes
import os
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of `mallopt`, from malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's malloc not to hand freed memory back to the system.

    By default a tensor above some 100 KiB may come as new pages from the kernel each time, which
    then have to be cleared one by one: a third of the time of augmentation on a CPU, and up to a
    tenth of a training step's. From now on the process keeps what it once needed, and its gaps: the
    price is memory, above all for tensors of ever other sizes, as batches of packed images are.
    Whoever has tuned malloc themselves (`MALLOC_...` or `GLIBC_TUNABLES` in the environment) is
    left alone: `MALLOC_TRIM_THRESHOLD_=131072` has the default.

    Returns:
        Whether there was a glibc that could be told.
    """
    tuned = [name for name in os.environ if name.startswith("MALLOC_")]
    if tuned or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _of_libc("mallopt")
    # No block is a mapping of its own, and no end of the heap is too long to be kept (-1: never).
    return bool(mallopt and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def give_back_memory() -> None:
    """Hands freed memory back to the system after all, so that what is in use can be measured."""
    trim = _of_libc("malloc_trim")
    if trim:
        trim(0)


def _of_libc(name: str) -> Any:
    """A function of the C library, or `None`: glibc has both, others (macOS, musl) have not."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
