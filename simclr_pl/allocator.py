"""Memory that is freed is kept: the tensors of a step are as large in the next one."""

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # names of `mallopt`, from malloc.h

_LARGEST = 32 * 2**20  # the most that glibc takes for the first of them on 64 bits

_LARGE_PAGE, _MADV_HUGEPAGE = 2**21, 14  # bytes; the name of `madvise`, from Linux' mman.h


def keep_freed_memory() -> bool:
    """Tells glibc's malloc not to hand freed memory back to the system at once.

    By default a tensor above some 100 KiB may come as new pages from the kernel each time, which
    then have to be cleared one by one: a third of the time of augmentation on a CPU. Blocks below
    32 MiB, and 1 GiB of free memory, are kept from now on. Whoever has tuned malloc themselves
    (`MALLOC_...` or `GLIBC_TUNABLES` in the environment) is left alone.

    Returns:
        Whether there was a glibc that could be told.
    """
    tuned = [name for name in os.environ if name.startswith("MALLOC_")]
    if tuned or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, 2**30))


def give_back_memory() -> None:
    """Hands freed memory back to the system after all, where that is glibc's: to measure it."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def ask_for_large_pages(address: int, size: int) -> bool:
    """Tells Linux that new memory may come in pages of 2 MiB, if it is too large to be kept.

    In pages of 4 KiB, each of which has to be asked for and cleared, the views of a batch of
    photographs take a fifth longer. Where the system has no large pages nothing changes.

    Args:
        address: of the memory.
        size: in bytes.

    Returns:
        Whether the system was asked.
    """
    if sys.platform != "linux" or size < _LARGEST:
        return False
    begin = -(-address // _LARGE_PAGE) * _LARGE_PAGE
    end = (address + size) // _LARGE_PAGE * _LARGE_PAGE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return bool(madvise(begin, end - begin, _MADV_HUGEPAGE) == 0)
