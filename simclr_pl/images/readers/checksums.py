"""Checksums of torchvision's files, compared once for as long as the files stay as they are."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from simclr_pl.core.errors import UserError
from simclr_pl.images.files.kept import state_of
from simclr_pl.writing import cache_folder, make_folder, whole

CHECK = "_check_integrity"
"""torchvision's own name for the method that compares checksums."""

_whole: set[str] = set()
"""What this process knows to be whole, where the cache cannot be written."""


def checked_once(kind: Any) -> Any:
    """A torchvision class that compares the checksums of its files once; another one as it is.

    torchvision reads all files for each object, of STL-10 2.6 GB for each split. Here an empty file
    in `~/.cache/simclr_pl/whole` says that they were whole; its name is of the files' paths, sizes,
    inodes and times, and of the checksums.

    Args:
        kind: the class; those with tables of files (CIFAR, STL-10) compare all of them at once.
    """
    tables = (CHECK, "base_folder", "train_list", "test_list")
    if not all(hasattr(kind, name) for name in tables):
        return kind

    def check(self: Any) -> bool:
        try:
            mark = _mark(Path(self.root, self.base_folder), self.train_list + self.test_list)
        except OSError:  # a file is not there
            return False
        if not _is_known(mark):
            if not getattr(kind, CHECK)(self):
                return False
            _remember(mark)
        return True

    return type(kind.__name__, (kind,), {CHECK: check})


def _mark(folder: Path, files: list[list[str]]) -> str:
    """A name for the files as they are, and for what they should be.

    Raises:
        OSError: one is missing.
    """
    digest = hashlib.sha256()
    for name, md5 in files:
        path = os.path.abspath(folder / name)  # noqa: PTH100 - a link stays one
        digest.update(state_of(path, os.stat(path)) + md5.encode())  # noqa: PTH116
    return digest.hexdigest()[:32]


def _is_known(mark: str) -> bool:
    with suppress(OSError):
        return mark in _whole or (cache_folder("whole") / mark).is_file()
    return False


def _remember(mark: str) -> None:
    _whole.add(mark)
    with suppress(UserError):  # the next process compares them again
        make_folder(cache_folder("whole"))
        with whole(cache_folder("whole") / mark):
            pass
