"""Files that are there whole or not at all, errors of writing, and names as they are printed."""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from simclr_pl.core.errors import UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a disk, or of a quota, that has no room left."""


@contextmanager
def whole(path: Path, option: str = "", then: str = "") -> Iterator[BinaryIO]:
    """Writes a file beside the old one, syncs, renames: a kill leaves the old file or the new one.

    The unfinished file has a name that no other process uses, and goes where writing fails.

    Args:
        path: the file; its folder is there.
        option: what gives another place, as in `--out`, for the error.
        then: advice that ends the error's sentence.

    Yields:
        The unfinished file, open for writing.

    Raises:
        UserError: it cannot be written.
    """
    unfinished = beside(path)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        failure = _failure(error)
        # (An error that names another file is somebody else's: of what was to be read, say.)
        if failure is None or failure.filename not in (None, str(unfinished)):
            raise
        raise cannot_write(path, failure, option, then) from error


def write_text(path: Path, text: str, option: str = "") -> None:
    """Writes a text in UTF-8, whole or not at all; see `whole`.

    Bytes of a path that are no UTF-8 are escaped.
    """
    with whole(path, option) as file:
        file.write(text.encode(errors="backslashreplace"))


def make_folder(path: Path, option: str = "") -> None:
    """Makes a folder and those above it, as far as they are not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, option) from error


def cache_folder(name: str) -> Path:
    """The folder of that name for what can be made again: `~/.cache/simclr_pl/NAME`."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(f"{home}/simclr_pl/{name}")).absolute()  # noqa: PTH111


def beside(path: Path) -> Path:
    """A hidden name in the same folder, which no other process has; `sweep` knows it again."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def sweep(folder: Path, name: str = "*") -> None:
    """Removes what killed processes have left unfinished.

    Args:
        folder: where they wrote.
        name: of the file, that nobody may be writing now; a pattern.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        with suppress(OSError):
            path.unlink()


def cannot_write(path: Path, error: OSError, option: str = "", then: str = "") -> UserError:
    """The sentence about a file that could not be written.

    Args:
        path: the file.
        error: what the system says.
        option: what gives another place.
        then: advice that ends the sentence.
    """
    what, remedies = error.strerror, [f"give another {option}"] if option else []
    if error.errno in FULL:
        remedies.insert(0, "free some space on that disk")
    elif error.errno == errno.ENOENT:
        what = f"there is no folder {path.parent}"
    remedy = ", or ".join(remedies) or "see to it that it can be"
    return UserError(f"{path} cannot be written ({what}): {remedy}{then and '; ' + then}")


def printable(text: str) -> str:
    r"""A name from a file system as one that can be printed, and written to any file.

    Bytes that are no UTF-8 become `\xe4`, and characters that would break a line or don't show
    are escaped as in Python's own strings.
    """
    known = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)


def as_folder(name: str) -> str:
    """A data set's name as one folder's: `hub:uoft-cs/cifar10` is `hub-uoft-cs-cifar10`."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def of_full_disk(error: BaseException) -> UserError | None:
    """The sentence about an error that came of a full disk; of another one `None`."""
    failure = _failure(error)
    if failure is None or failure.errno not in FULL:
        return None
    return cannot_write(Path(failure.filename or "a file (--debug shows where)"), failure)


def _failure(error: BaseException | None) -> OSError | None:
    """The system's error behind an error; `torch.save` hides it behind its own."""
    while error is not None and not isinstance(error, OSError):
        error = None if isinstance(error, UserError) else error.__context__
    return error if error is not None and error.errno else None


def _sync(folder: Path) -> None:
    """Sees to it that the disk knows the new name, where folders can be opened (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some network file systems sync no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
