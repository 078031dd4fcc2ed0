"""Listings of folders that are kept, and used for as long as no folder's times have changed."""

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from simclr_pl.core.distributed import rank_and_world
from simclr_pl.core.errors import UserError
from simclr_pl.images.names import Names
from simclr_pl.locks import alone
from simclr_pl.writing import cache_folder, make_folder, whole

FORMAT = 1
"""Version of the files; another one is written anew."""

LEAST = 10_000
"""Names of a listing that is kept: a walk to fewer takes less than a tenth of a second."""

SETTLED_S = 10.0
"""Least age of a folder's times, where they are trusted: a change right behind the walk may leave
times of 2 s granularity as they are, and a server's clock may be behind."""

WITH_TIMES = frozenset(
    [
        *("beegfs", "btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "gpfs", "jfs", "lustre"),
        *("nfs", "nfs4", "overlay", "tmpfs", "xfs", "zfs"),
    ]
)
"""File systems that change a folder's times whenever a name comes or goes. Those that show a store
of objects do not."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/mounts")

Found = tuple[Names, Any]
"""Paths below a folder, and what there is to say about them, as JSON has it."""


class Looked:
    """The folders and files that a listing depends on.

    As long as their times are what they were, a walk finds the same.

    Attributes:
        begun: the monotonic clock's nanoseconds when the walk began.
        has_links: whether there are links to files: what they lead to may go, and no folder's time
            tells.
    """

    def __init__(self) -> None:
        self.begun, self._begun_s = time.monotonic_ns(), time.time()
        self.has_links = False
        self._paths: list[bytes] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._newest_ns = 0

    def at(self, path: str) -> os.stat_result:
        """A folder's state, or a file's, which is remembered.

        Raises:
            OSError: there is none.
        """
        found = os.stat(path)  # noqa: PTH116 - of a string, for every folder
        self._paths.append(os.fsencode(path))
        self._digest.update(state_of(path, found))
        self._newest_ns = max(self._newest_ns, found.st_mtime_ns, found.st_ctime_ns)
        return found

    def arrays(self) -> dict[str, Any]:
        """All of it, to be kept; `trusted` is whether times vouch for the listing."""
        paths = Names.of(self._paths)
        old = self._newest_ns < (self._begun_s - SETTLED_S) * 1e9
        trusted = old and not self.has_links and {*map(_file_system, self._tops())} <= WITH_TIMES
        return {
            "trusted": trusted, "digest": self._digest.hexdigest(), "begun": self.begun,
            "boot": _boot(), "looked_letters": paths.letters, "looked_ends": paths.ends,
        }  # fmt: skip

    def _tops(self) -> Iterator[str]:
        """The first path of each file system."""
        devices = set[int]()
        for path in map(os.fsdecode, self._paths):
            with suppress(OSError):
                device = os.stat(path).st_dev  # noqa: PTH116 - likewise
                if device not in devices:
                    devices.add(device)
                    yield path


def kept(root: str, of: Any, walk: Callable[[Looked], Found]) -> Found:
    """What a walk finds below a folder: as it was kept, or found now, and kept.

    One rank of a node walks at a time; the others take what it has found. (On a network file system
    a folder's times are seen up to a minute late where another machine changes it.)

    Args:
        root: the folder.
        of: what else the listing depends on, as JSON has it.
        walk: finds paths, and remembers what they depend on.
    """
    asked = time.monotonic_ns()
    mark = json.dumps([FORMAT, root, of])
    file = file_of(root)
    found = _read(file, mark, asked)
    if found is not None:
        return found
    with _in_turn(file, root):
        found = _read(file, mark, asked)
        if found is None:
            looked = Looked()
            found = walk(looked)
            if len(found[0]) >= LEAST:
                _write(file, mark, looked, found)
    return found


def file_of(root: str) -> Path:
    """Where a folder's listing is kept, of whatever state and kind."""
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]  # noqa: PTH100
    return cache_folder("listings") / f"{name}.npz"


@contextmanager
def _in_turn(file: Path, root: str) -> Iterator[None]:
    """A context for one rank of a node at a time; for all where no lock can be written."""
    lock = file.with_suffix(f".{socket.gethostname()}.lock")
    with ExitStack() as turn:
        if rank_and_world()[1] > 1:
            with suppress(OSError, UserError):
                make_folder(lock.parent)
                turn.enter_context(alone(lock, f"to list {root}"))
        yield


def _write(file: Path, mark: str, looked: Looked, found: Found) -> None:
    names, said = found
    with suppress(UserError):  # it is walked again
        make_folder(file.parent)
        with whole(file) as out:
            np.savez(
                out, mark=mark, letters=names.letters, ends=names.ends, said=json.dumps(said),
                **looked.arrays(),
            )  # fmt: skip


def _read(file: Path, mark: str, asked: int) -> Found | None:
    """A kept listing that a walk would find again; `None` where there is none.

    Args:
        file: where it was kept.
        mark: what it has to be of.
        asked: the monotonic clock when the listing was asked for; of a later walk, nothing needs to
            be checked.
    """
    try:
        # (NumPy leaves a broken file open.)
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as got:
            if got["mark"].item() != mark:
                return None
            new = got["boot"].item() == _boot() != "" and int(got["begun"]) >= asked
            if not new and not (got["trusted"] and _is_same(got)):
                return None
            return Names(got["letters"], got["ends"]), json.loads(got["said"].item())
    except Exception:  # no file, or a broken one, of which NumPy and zipfile raise anything
        return None


def _is_same(got: Any) -> bool:
    digest = hashlib.blake2b(digest_size=16)
    for name in Names(got["looked_letters"], got["looked_ends"]):
        path = os.fsdecode(name)
        digest.update(state_of(path, os.stat(path)))  # noqa: PTH116 - of a string, for every folder
    return bool(digest.hexdigest() == got["digest"].item())


def state_of(path: str, found: os.stat_result) -> bytes:
    """What changes when a file does, or when a name comes to a folder or goes.

    Devices have other numbers on other machines; the times and the inode of a folder that is
    mounted are others.
    """
    parts = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    return os.fsencode(path) + b"\0%d %d %d %d\0" % parts


def _boot() -> str:
    """A name for the time since the machine's start; empty where the system has none."""
    with suppress(OSError):
        return _BOOT.read_text(encoding="ascii").strip()
    return ""


def _file_system(path: str) -> str:
    """The kind of file system that a path is on; empty where the system does not say."""
    path, longest, kind = os.path.realpath(path) + os.sep, 0, ""
    with suppress(OSError):
        for line in _MOUNTS.read_bytes().splitlines():
            _, place, of, *_ = line.split(b" ")
            place = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), place)
            above = os.fsdecode(place).rstrip(os.sep) + os.sep
            if path.startswith(above) and len(above) >= longest:
                longest, kind = len(above), of.decode()
    return kind
