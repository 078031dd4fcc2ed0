"""The images below a folder, once each, in an order that is the same on every machine.

Every file that is left out is counted with the reason.
"""

import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from simclr_pl.core.errors import UserError
from simclr_pl.images.files.formats import is_image, suffixes, unread
from simclr_pl.images.files.numeric import SUFFIXES, is_dicom, kind_of_numbers

OF_SYSTEMS = frozenset(
    {
        "__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle",
        "#snapshot", "$recycle.bin", "lost+found", "system volume information", "thumbs.db",
        "desktop.ini", "ehthumbs.db",
    }
)  # fmt: skip
"""What file managers, archives and storage put beside people's files, in small letters."""

NAMED = 3
"""Files that are named as examples of one reason."""


class LeftOut:
    """Files and folders that were left out, counted by reason.

    Args:
        numbers: whether files of numbers (NumPy, HDF5, DICOM) are images, too.
    """

    def __init__(self, *, numbers: bool = False) -> None:
        self.numbers, self.known = numbers, suffixes() | (SUFFIXES if numbers else frozenset())
        self.counts: Counter[str] = Counter()
        self.unread: list[tuple[Path, str]] = []
        """Image files of formats that are not read here, with the format and the remedy."""
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str = "") -> None:
        """Counts a file; the first few different examples of a reason are kept."""
        self.counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if example and example not in examples and len(examples) < NAMED + 1:
            examples.append(example)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {reason}{self._named(reason)}" for reason, count in self.counts.most_common()
        )

    def _named(self, reason: str) -> str:
        examples = sorted(self._examples[reason][:NAMED])
        more = ", ..." if len(self._examples[reason]) > NAMED else ""
        return f" ({', '.join(examples)}{more})" if examples else ""


class File(NamedTuple):
    """An image file.

    Attributes:
        key: the path below the listed folder, as bytes, with a zero between its parts. Files are
            sorted by it, which is the order of folders' names, then of files' names.
        path: the whole path.
    """

    key: bytes
    path: str

    @property
    def first(self) -> bytes:
        """The topmost folder of the path below the listed one; empty where there is none."""
        folder, zero, _ = self.key.partition(b"\0")
        return folder if zero else b""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is a system's rather than a person's."""
    return name.startswith(".") or name.lower() in OF_SYSTEMS


def images_below(root: Path, left: LeftOut) -> list[File]:
    """All image files below a folder, at any depth, in the order of their names.

    Links to folders are followed, after all other folders. A folder is entered once (by device and
    inode), however many names lead to it; a folder that holds `root` is not entered.

    Args:
        root: the folder.
        left: counts the files that are left out.

    Raises:
        UserError: a folder that cannot be read.
    """
    start = str(root)
    files = [file for folder in _folders(start, left) for file in _images(folder, start, left)]
    return sorted(files)


def _folders(root: str, left: LeftOut) -> Iterator[list["os.DirEntry[str]"]]:
    """The entries of each folder, without folders and hidden names."""
    resolved = Path(root).resolve()
    seen = {_identity(str(folder)) for folder in resolved.parents}
    inside, links = [root], list[str]()
    while inside or links:
        folder = inside.pop() if inside else heapq.heappop(links)
        identity = _identity(folder)
        if identity in seen:
            left.add("folders that were there already", _below(folder, root))
            continue
        seen.add(identity)
        entries = []
        for entry in entries_of(folder):
            if is_hidden(entry.name):
                left.add("hidden or of a system", entry.name)
            elif entry.is_dir(follow_symlinks=False):
                inside.append(entry.path)
            elif entry.is_symlink() and is_a(entry.is_dir):
                heapq.heappush(links, entry.path)
            else:
                entries.append(entry)
        yield entries


def _images(entries: list["os.DirEntry[str]"], root: str, left: LeftOut) -> Iterator[File]:
    for entry in entries:
        if not is_a(entry.is_file):
            dead = entry.is_symlink()
            left.add("links to nothing" if dead else "no regular files", _below(entry.path, root))
        elif is_taken(entry.path, left):
            yield File(os.fsencode(_below(entry.path, root)).replace(_SEPARATOR, b"\0"), entry.path)


def is_taken(path: str, left: LeftOut) -> bool:
    """Whether a file is an image of a format that is read here, by its suffix.

    Args:
        path: the file.
        left: counts it where it is none.
    """
    name = os.path.basename(path)  # noqa: PTH119 - of a million names
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - of a million names
    if suffix in left.known or (not suffix and _begins_like_one(Path(path), left)):
        return True
    if remedy := unread(suffix):
        left.add(f"of a format that is not read here, {remedy}", suffix)
        left.unread.append((Path(path), remedy))
    elif kind := kind_of_numbers(suffix):
        left.add(f"of numbers ({kind}), which are read with --data.range", suffix)
    elif suffix:
        left.add("of kinds that are not read", suffix)
    else:
        left.add("without suffix that are no images", name)
    return False


_SEPARATOR = os.fsencode(os.sep)


def _begins_like_one(path: Path, left: LeftOut) -> bool:
    return is_image(path) or (left.numbers and is_dicom(path))


def is_a(kind: Callable[[], bool]) -> bool:
    """Whether an entry is a file or folder, as `kind` asks; a link to itself is neither."""
    try:
        return kind()
    except OSError:
        return False


def _below(path: str, root: str) -> str:
    return path[len(root) :].lstrip(os.sep)


def entries_of(folder: str) -> list["os.DirEntry[str]"]:
    """The entries of a folder, in no order.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): give yourself the right to, or move it "
            "out of the images' folder"
        ) from error


def _identity(folder: str) -> tuple[int, int]:
    """Device and inode of a folder."""
    try:
        found = os.stat(folder)  # noqa: PTH116 - of a string, for every folder
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): move it out of the images' folder"
        ) from error
    return found.st_dev, found.st_ino
