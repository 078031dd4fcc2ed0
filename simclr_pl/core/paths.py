"""Names of files: as a person writes them, and as they can be printed."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path as a person writes it, where `~` is the home directory.

    A shell expands `--out ~/x`, but neither `--out=~/x` nor what a YAML or Python says.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `~x` of no user stays as it is


def printable(text: str) -> str:
    r"""A name from a file system as one that can be printed, and written to any file.

    Bytes that are no UTF-8 become `\xe4`, and characters that would break a line or don't show
    are escaped as in Python's own strings.
    """
    known = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)
