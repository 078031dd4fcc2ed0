"""The images below a folder, once each, in an order that is the same on every machine.

Every file that is left out is counted with the reason.
"""

import heapq
import os
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from simclr_pl.core.errors import UserError
from simclr_pl.images.files.formats import decoders, is_image, suffixes, unread
from simclr_pl.images.files.kept import Found, Looked, kept
from simclr_pl.images.files.numeric import SUFFIXES, is_dicom, kind_of_numbers
from simclr_pl.images.names import Names

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

    def add(self, reason: str, *examples: str, count: int = 1) -> None:
        """Counts files; the first few different examples of a reason are kept."""
        self.counts[reason] += count
        known = self._examples.setdefault(reason, [])
        for example in examples:
            if example not in known and len(known) < NAMED + 1:
                known.append(example)

    def state(self, root: str) -> Any:
        """All of it, as JSON has it, with paths below a folder."""
        unread = [(_below(str(path), root), remedy) for path, remedy in self.unread]
        return [self.counts, self._examples, unread]

    def include(self, state: Any, root: str) -> None:
        """Adds what was left out below a folder, see `state`."""
        counts, examples, unread = state
        for reason, count in counts.items():
            self.add(reason, *examples[reason], count=count)
        self.unread += [(Path(root, below), remedy) for below, remedy in unread]

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {reason}{self._named(reason)}" for reason, count in self.counts.most_common()
        )

    def _named(self, reason: str) -> str:
        examples = sorted(self._examples[reason][:NAMED])
        more = ", ..." if len(self._examples[reason]) > NAMED else ""
        return f" ({', '.join(examples)}{more})" if examples else ""


class Listing(NamedTuple):
    """The image files below a folder.

    Attributes:
        names: paths below the folder: those beside the topmost folders first, then by the names of
            folders, then of files.
        folders: how many images each topmost folder has; those beside these have an empty name.
    """

    names: Names
    folders: dict[str, int]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is a system's rather than a person's."""
    return name.startswith(".") or name.lower() in OF_SYSTEMS


def images_below(root: Path, left: LeftOut) -> Listing:
    """All image files below a folder, at any depth, in the order of their names; see `kept`.

    Links to folders are followed, after all other folders. A folder is entered once (by device and
    inode), however many names lead to it; a folder that holds `root` is not entered.

    Args:
        root: the folder.
        left: counts the files that are left out.

    Raises:
        UserError: a folder that cannot be read.
    """

    def walk(looked: Looked) -> Found:
        own = LeftOut(numbers=left.numbers)
        found = _walked(str(root), own, looked)
        return found.names, [found.folders, own.state(str(root))]

    names, (folders, state) = kept(str(root), [sorted(left.known), decoders()], walk)
    left.include(state, str(root))
    return Listing(names, folders)


def _walked(root: str, left: LeftOut, looked: Looked) -> Listing:
    letters, sizes, folders = bytearray(), array("i"), dict[str, int]()
    topmost = set[bytes]()
    runs = sorted(_runs(root, left, looked, topmost), reverse=True)
    while runs:  # each makes room for the next one's paths
        _, below, joined = runs.pop()
        names, first = joined.split(b"\0"), os.fsdecode(below.partition(b"/")[0])
        letters += below + below.join(names)
        sizes.extend(len(below) + len(name) for name in names)
        folders[first] = folders.get(first, 0) + len(names)
    for name in sorted({*map(os.fsdecode, topmost)} - {"", *folders}):
        left.add("folders without images", name)
    return Listing(Names.joined(letters, sizes), folders)


Run = tuple[tuple[bool, bytes], bytes, bytes]
"""Images of a folder between which no image of another folder lies: their place in the order, the
folder with a slash behind it, and their names in order, joined by zeros."""


def _runs(root: str, left: LeftOut, looked: Looked, topmost: set[bytes]) -> Iterator[Run]:
    """All runs; the names of the topmost folders come to `topmost`."""
    for folder, names, folders in _folders(root, left, looked):
        below = os.fsencode(_below(folder, root)).replace(_SEPARATOR, b"/")
        topmost.add(below.partition(b"/")[0])
        below += b"/" * bool(below)
        names.sort()
        folders.sort()
        for _, run in groupby(names, partial(bisect, folders)):
            joined = b"\0".join(run)
            # (A zero between the parts is less than any letter: folders are compared as a whole.)
            key = below.replace(b"/", b"\0") + joined.partition(b"\0")[0]
            yield (bool(below), key), below, joined


def _folders(
    root: str, left: LeftOut, looked: Looked
) -> Iterator[tuple[str, list[bytes], list[bytes]]]:
    """Each folder with the names of its images, and of the folders in it."""
    resolved = Path(root).resolve()
    seen = {_identity(str(folder)) for folder in resolved.parents}
    inside, links = [root], list[str]()
    while inside or links:
        folder = inside.pop() if inside else heapq.heappop(links)
        identity = _identity(folder, looked.at)
        if identity in seen:
            left.add("folders that were there already", _below(folder, root))
            continue
        seen.add(identity)
        names, folders, others = list[bytes](), list[bytes](), list["os.DirEntry[str]"]()
        for entry in entries_of(folder):
            name, is_link = entry.name, entry.is_symlink()
            if is_hidden(name):
                left.add("hidden or of a system", name)
            elif entry.is_dir(follow_symlinks=False):
                inside.append(entry.path)
                folders.append(os.fsencode(name))
            elif is_link and is_a(entry.is_dir):
                heapq.heappush(links, entry.path)
                folders.append(os.fsencode(name))
            elif (
                not is_link
                and name[name.rfind(".") :].lower() in left.known
                and is_a(entry.is_file)
            ):
                names.append(os.fsencode(name))
            else:
                others.append(entry)
        names += [os.fsencode(e.name) for e in others if _is_image(e, root, left, looked)]
        yield folder, names, folders


def _is_image(entry: "os.DirEntry[str]", root: str, left: LeftOut, looked: Looked) -> bool:
    looked.has_links |= entry.is_symlink()
    if is_a(entry.is_file):
        if "." not in entry.name:
            with suppress(OSError):
                looked.at(entry.path)  # its first bytes decide
        return is_taken(entry.path, left)
    dead = entry.is_symlink()
    left.add("links to nothing" if dead else "no regular files", _below(entry.path, root))
    return False


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


def entries_of(folder: str) -> Iterator["os.DirEntry[str]"]:
    """The entries of a folder, in no order.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): give yourself the right to, or move it "
            "out of the images' folder"
        ) from error


def _identity(folder: str, state: Callable[[str], os.stat_result] = os.stat) -> tuple[int, int]:
    """Device and inode of a folder."""
    try:
        found = state(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): move it out of the images' folder"
        ) from error
    return found.st_dev, found.st_ino
