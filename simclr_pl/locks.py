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

NOTICE = 10.0
"""Seconds after which it is said what is waited for."""

PATIENCE = 3600.0
"""Seconds another process may take: where locks are no more than files, it may be long dead."""

WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What file systems say that know no locks."""


@contextmanager
def alone(path: Path, purpose: str) -> Iterator[Path]:
    """Lets one process after the other in, of all machines that see the file of the lock.

    Where the file system has locks, they end with the process that holds them. The file stays,
    since on NFS others may have it open, unless the holder removes it.

    Args:
        path: of the lock's file.
        purpose: what the holder does, beginning with "to", for those that wait.

    Yields:
        The path.

    Raises:
        OSError: the file cannot be written.
        UserError: another process has had the lock for `PATIENCE` seconds.
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
        lock.acquire(timeout=NOTICE)
        return
    sys.stdout.write(f"waiting for {holder_of(lock)} {purpose}\n")
    sys.stdout.flush()
    try:
        lock.acquire(timeout=PATIENCE - NOTICE)
    except Timeout:
        raise UserError(
            f"waited {time.monotonic() - begun:.0f} s for {holder_of(lock)} {purpose}: start "
            f"again when it has ended; if it has ended already, remove {lock.lock_file} first"
        ) from None


def sign(descriptor: int) -> None:
    """Writes who holds a lock into its file, as `SoftFileLock` does by itself."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)


def holder_of(lock: BaseFileLock) -> str:
    """Who holds a lock, as its file has it: the process and its machine."""
    try:
        process, host, *_ = (
            Path(lock.lock_file).read_text(encoding="utf-8", errors="replace").split()
        )
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"
