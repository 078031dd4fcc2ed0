"""One process after the other: a lock in a file, over all machines that see the file."""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from simclr_pl.core.errors import UserError

NOTICE_AFTER_S = 10.0
"""Seconds after which a process says which other process it waits for."""

LOCK_TIMEOUT_S = 3600.0
"""Longest wait in seconds: where locks are no more than files, their holder may be long dead."""

WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""Errors of file systems that know no locks."""


@contextmanager
def alone(path: Path, purpose: str) -> Iterator[Path]:
    """A context that one process after the other enters, of all machines that see the lock's file.

    Where the file system has locks, a lock ends with the process that holds it. The file stays,
    unless the holder removes it: on NFS other processes may have it open.

    Args:
        path: the lock's file.
        purpose: what the holder does, beginning with "to", for a line about the wait.

    Yields:
        The path.

    Raises:
        OSError: the file cannot be written.
        UserError: another process has had the lock for `LOCK_TIMEOUT_S` seconds.
    """
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False, on_acquired=sign)
    try:
        _acquire(lock, purpose)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        lock = SoftFileLock(path.with_suffix(".held"))
        _acquire(lock, purpose)
    try:
        yield path
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, purpose: str) -> None:
    begun = time.monotonic()
    with suppress(Timeout):
        lock.acquire(timeout=NOTICE_AFTER_S)
        return
    sys.stdout.write(f"waiting for {holder_of(lock)} {purpose}\n")
    sys.stdout.flush()
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S - NOTICE_AFTER_S)
    except Timeout:
        raise UserError(
            f"waited {time.monotonic() - begun:.0f} s for {holder_of(lock)} {purpose}: start "
            f"again when it has ended; if it has ended already, remove {lock.lock_file} first"
        ) from None


def sign(descriptor: int) -> None:
    """Writes process and machine of the holder into a lock's file, as `SoftFileLock` does."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)


def holder_of(lock: BaseFileLock) -> str:
    """Process and machine of a lock's holder, as the lock's file names them."""
    try:
        process, host, *_ = (
            Path(lock.lock_file).read_text(encoding="utf-8", errors="replace").split()
        )
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"
