"""One process trains in a run directory: a lock that the kernel holds while that process lives."""

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from simclr_pl.core.errors import UserError
from simclr_pl.locks import WITHOUT_LOCKS, holder_of, sign
from simclr_pl.writing import cannot_write

AT_ONCE_S = 1.0
"""Seconds that a process has to be gone which was killed a moment ago."""

RESTARTED_S = 60.0
"""Seconds that a restarted Slurm job waits for the one before, which may still be dying."""


class RunLock:
    """The lock of a run directory.

    Args:
        path: the lock's file, which exists while the lock is held, and after a process was killed.
        option: the command-line option that gives another directory, quoted in errors.
    """

    def __init__(self, path: Path, option: str) -> None:
        self.path, self.option = path, option
        # Children that are forked, as workers are, don't keep it.
        self._lock = FileLock(path, fallback_to_soft=False, on_acquired=sign)

    def take(self) -> None:
        """Takes the lock; a line says so where the file system has no locks.

        Raises:
            UserError: another process has it, or its file cannot be written.
        """
        try:
            self._take()
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise cannot_write(self.path, error, self.option) from error
            self.path.unlink(missing_ok=True)
            _say_no_locks(str(error.strerror))

    def _take(self) -> None:
        with suppress(Timeout):
            self._lock.acquire(timeout=AT_ONCE_S)
            return
        if _is_restarted():
            sys.stdout.write(
                f"waiting up to {RESTARTED_S:.0f} s for {holder_of(self._lock)} to leave "
                f"{self.path.parent}\n"
            )
            sys.stdout.flush()
            with suppress(Timeout):
                self._lock.acquire(timeout=RESTARTED_S)
                return
        raise UserError(
            f"{self.path.parent} is in use: {holder_of(self._lock)} trains in it. Wait until that "
            f"has ended, or give another {self.option}"
        )

    def release(self) -> None:
        """Gives the lock back, if this process has it, and removes its file."""
        if self._lock.is_locked:
            with suppress(OSError):  # the directory may be gone
                self.path.unlink(missing_ok=True)
            self._lock.release()


def _is_restarted() -> bool:
    """Whether Slurm has started this job before."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return count.isdigit() and int(count) > 0


@cache
def _say_no_locks(reason: str) -> None:
    sys.stdout.write(
        f"this file system has no locks ({reason}): nothing keeps a second process out of a run "
        "directory, so see to it that there is none\n"
    )
