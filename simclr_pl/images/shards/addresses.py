"""Where shards are: folders, patterns, lists and addresses, and the split of each shard."""

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from simclr_pl.core.errors import UserError
from simclr_pl.images.shards.transport import attempt, is_remote, path_in, system_of

_BRACES = re.compile(r"\{([^{}]*)\}")
COMPRESSED = (
    "{} is compressed, so that no image can be read by its place: unpack the shard (images are "
    "compressed already), and give the .tar"
)
"""What is said of such a shard."""

INDEX = ".index"
"""Suffix of the index beside a shard."""

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


def shards_at(root: str, called: dict[str, set[str]]) -> dict[str, list[str]]:
    """The addresses of all shards, sorted, by split.

    A shard's split is named by a word of its own name (`imagenet-val-0001.tar`), or else by its
    folder (`val/0001.tar`); all others are train's. Shards of one split alone are train's.

    Args:
        root: a folder, a .tar file, a pattern (`train-{000..127}.tar`, `part-*.tar`), or a text
            file with an address a line; on a disk, or at an address such as `https://host/folder/`.
        called: the names that each split goes by, in small letters.

    Raises:
        UserError: no shard there, the same shard twice, a compressed one, or a password in one's
            address.
    """
    _check_no_password(root)
    patterns = _spelt_out(root)
    for pattern in patterns:
        _check_no_password(pattern)
    found = [each for pattern in patterns for each in _matching(pattern)]
    packed = next((each for each in found if each.endswith(_COMPRESSED)), None)
    if packed is not None:
        raise UserError(COMPRESSED.format(packed))
    if not found:
        raise UserError(f"{root} has no .tar file: give shards, or their folder, as --data.root")
    twice = [each for each, count in Counter(found).items() if count > 1]
    if twice:
        raise UserError(f"{root} names {min(twice)} twice: leave one out")
    words = {word: split for split, names in called.items() for word in names}
    splits: dict[str, list[str]] = {}
    for address in found:
        splits.setdefault(_split_of(address, words), []).append(address)
    return splits if len(splits) > 1 else {"train": found}


def _check_no_password(address: str) -> None:
    """Refuses a password in an address, which config.yaml and messages would show.

    Raises:
        UserError: names the server alone.
    """
    user, at, host = urlsplit(address).netloc.rpartition("@") if is_remote(address) else ("",) * 3
    if at and ":" in user:
        machine = host.partition(":")[0]
        raise UserError(
            f"an address of {host} has a password in it, which config.yaml would keep: leave it "
            f"out, and write machine {machine} login NAME password WORD into ~/.netrc"
        )


def _split_of(address: str, words: dict[str, str]) -> str:
    path = PurePosixPath(address)
    parts = [*re.split(r"[-_.]", path.stem.casefold()), path.parent.name.casefold()]
    return next((words[part] for part in parts if part in words), "train")


def _spelt_out(root: str) -> list[str]:
    """Patterns without braces; the lines of a text file."""
    if not root.endswith(".txt"):
        return _expanded(root)
    if is_remote(root):
        text = attempt(root, "read", lambda: system_of(root).cat_file(path_in(root)))
    else:
        try:
            text = Path(root).expanduser().read_bytes()
        except OSError as error:
            raise UserError(f"{root} cannot be read ({error.strerror})") from error
    lines = [line.strip() for line in text.decode(errors="surrogateescape").splitlines()]
    folder = root[: root.rfind("/") + 1]
    listed = [line for line in lines if line and not line.startswith("#")]
    below = [x if is_remote(x) or x.startswith(("/", "~")) else folder + x for x in listed]
    return [each for line in below for each in _expanded(line)]


def _expanded(pattern: str) -> list[str]:
    """Braces as a shell expands them: `{a,b}`, and `{000..127}` with its zeros."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, dots, last = braces[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        words = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    else:
        words = braces[1].split(",")
    start, end = pattern[: braces.start()], pattern[braces.end() :]
    return [each for word in words for each in _expanded(f"{start}{word}{end}")]


def _matching(pattern: str) -> list[str]:
    """The shards that a pattern without braces, a folder or a file stands for."""
    if is_remote(pattern):
        return _remote(pattern)
    path = Path(pattern).expanduser().absolute()
    if path.is_dir():
        return sorted(str(each) for each in path.rglob("*.tar") if each.is_file())
    if path.exists():
        return [str(path)]
    relative = path.relative_to(path.anchor)
    found = sorted(map(str, Path(path.anchor).glob(str(relative)))) if "*" in pattern else []
    found = [each for each in found if not each.endswith(INDEX)]
    if not found:
        raise UserError(f"there is no shard {path}: give shards, or their folder, as --data.root")
    return found


def _remote(pattern: str) -> list[str]:
    if "*" not in pattern and re.search(r"\.t(ar|gz)(\.\w+)?(\?.*)?$", pattern):
        return [pattern]
    system: Any = system_of(pattern)
    path = path_in(pattern)

    def listed() -> list[str]:
        found = list(system.glob(path) if "*" in pattern else system.find(path))
        if not found:  # which may be that nobody answered: both say nothing of that
            system.ls(path.partition("*")[0].rpartition("/")[0] if "*" in pattern else path)
        return found

    paths = attempt(pattern, "listed", listed)
    return sorted(system.unstrip_protocol(each) for each in paths if each.endswith(".tar"))
