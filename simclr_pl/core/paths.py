"""Paths as a person writes them."""

import os
from pathlib import Path

from simclr_pl.core.errors import UserError


def expanded(path: str | Path) -> Path:
    """A path as a person writes it, where `~` is the home directory.

    A shell expands `--out ~/x`, but neither `--out=~/x` nor what a YAML or Python says.

    Raises:
        UserError: an address, as `s3://bucket/images`: files are read and written on disks alone.
    """
    # (A scheme is longer than a drive's letter; a value in YAML may hold an address further on.)
    if "://" in str(path)[2:] and str(path).partition("://")[0].isalnum():
        raise UserError(f"{path} is on no local disk, and only local disks serve: copy it first")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `~x` of no user stays as it is
