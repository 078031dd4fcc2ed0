"""Where the images of a tar file are: its index, made by a walk over the headers of its members."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from simclr_pl.core.errors import UserError
from simclr_pl.images.names import Array, Names
from simclr_pl.images.shards.addresses import COMPRESSED
from simclr_pl.images.shards.transport import Shard, fetch, is_remote
from simclr_pl.writing import printable

HEADER = 512
"""Bytes of a member's header, which lies right before its content."""

TAIL = 2**16
"""Bytes by which a shard is known again."""

WINDOW = 2**20
"""Bytes that are read at once from an address, to find headers in."""

IMAGES = frozenset(
    [
        *("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpeg", "jpg"),
        *("pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    ]
)
"""Suffixes of images."""

_MEMBER = re.compile(r"((?:.*/)?[^./][^/.]*)\.([^/]+)")
"""A member's key and suffix, as WebDataset splits them: at the first dot of the file's name."""


class Index(NamedTuple):
    """The images of a shard, in their order.

    Attributes:
        offsets: `int64 [N]`, where each image's bytes begin.
        sizes: `int64 [N]`, in bytes.
        codes: `int32 [N]`, places of the labels in `words`; -1 for none.
        words: the labels that occur.
        names: paths of the members in the tar file.
        others: members that belong to no sample.
        tail: digest of the bytes in `tail_of`, by which the shard is known again elsewhere.
    """

    offsets: Array
    sizes: Array
    codes: Array
    words: tuple[str, ...]
    names: Names
    others: int
    tail: bytes


class _Window(io.RawIOBase):
    """A shard at an address as a file to look for headers in: bodies are jumped over."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.place, self.start, self.held = shard, 0, 0, b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = 0) -> int:
        self.place = place + (0, self.place, self.shard.size)[whence]
        return self.place

    def read(self, size: int = -1) -> bytes:
        size = max(0, min(size, self.shard.size - self.place))
        if not self.start <= self.place <= self.place + size <= self.start + len(self.held):
            self.start = self.place
            most = self.shard.size - self.place
            self.held = (
                fetch(self.shard, self.place, min(max(size, WINDOW), most)) if most > 0 else b""
            )
        at = self.place - self.start
        self.place += size
        return self.held[at : at + size]


def scanned(shard: Shard, image: str | None) -> Index:
    """A shard's index, made.

    Args:
        shard: the tar file.
        image: suffix of the images, where samples have several.

    Raises:
        UserError: see `index_of`.
        OSError: the file cannot be read.
    """
    if shard.size == 0:
        raise UserError(f"{shard.address} is empty: write or copy the shard again")
    file: IO[bytes] = (
        _Window(shard)  # type: ignore[assignment]
        if is_remote(shard.address)
        else open(shard.address, "rb")  # noqa: PTH123, SIM115 - closed below
    )
    with file:
        begin = file.read(HEADER)
        if begin[:2] == b"\x1f\x8b" or begin[:3] == b"BZh" or begin[:6] == b"\xfd7zXZ\0":
            raise UserError(COMPRESSED.format(shard.address))
        file.seek(0)
        index = _Samples(shard.address, image).read(file)
        start, size = tail_of(shard, index)
        file.seek(start)
        return index._replace(tail=hashlib.sha256(file.read(size)).digest())


def tail_of(shard: Shard, index: Index) -> tuple[int, int]:
    """The first byte and the number of bytes from the last image's header on, `TAIL` at most."""
    start = int(index.offsets[-1]) - HEADER
    return start, min(TAIL, shard.size - start)


class _Samples:
    """Collects the samples of a shard: runs of members that share a key."""

    def __init__(self, address: str, image: str | None) -> None:
        self.address, self.image = address, image and image.lstrip(".").lower()
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.labels: list[str | None] = []
        self.names: list[bytes] = []
        self.keys: set[str] = set()
        self.others = 0

    def read(self, file: IO[bytes]) -> Index:
        key, sample = "", dict[str, Any]()
        for member in self._members(file):
            split = _MEMBER.fullmatch(member.name.removeprefix("./"))
            if split is None or not member.isfile():
                self.others += not member.isdir()
                continue
            if split[1] != key:
                self._add(key, sample)
                key, sample = split[1], {}
            suffix = split[2].lower()
            if suffix in sample:
                raise UserError(f"{self.address} has {printable(member.name)} twice")
            # (Labels are read as they pass: the bytes behind the header are at hand.)
            sample[suffix] = file.read(member.size) if suffix in ("cls", "json") else member
        self._add(key, sample)
        if not self.names:
            raise UserError(
                f"{self.address} has no sample: no member is an image (.jpg, .png, ...)"
            )
        words = sorted({label for label in self.labels if label is not None})
        codes = {None: -1} | {word: code for code, word in enumerate(words)}
        return Index(
            np.array(self.offsets, np.int64),
            np.array(self.sizes, np.int64),
            np.array([codes[label] for label in self.labels], np.int32),
            tuple(words),
            Names.of(self.names),
            self.others,
            b"",
        )

    def _members(self, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
        """All members; a list that ends before the tar file does is an error."""
        cut = f"{self.address} is cut off, or no tar file: write or copy the shard again"
        try:
            with tarfile.open(
                fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]
                    yield member
                file.seek(tar.offset)
                # (tarfile takes a broken header, or a hole of zeros, for the end.)
                rest = file.read(HEADER)
                if rest != bytes(HEADER):
                    raise UserError(cut)
                while rest:
                    if rest.strip(b"\0"):
                        raise UserError(cut)
                    rest = file.read(WINDOW)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(cut) from error

    def _add(self, key: str, sample: dict[str, Any]) -> None:
        """Adds a sample, whose members are known by their suffix."""
        if not sample:
            return
        named = f"{self.address}: sample {printable(key)}"
        if key in self.keys:
            raise UserError(f"{named} is there twice: write the shard with a key for each sample")
        self.keys.add(key)
        last = {suffix: suffix.rpartition(".")[2] for suffix in sample}
        images = [suffix for suffix in sample if last[suffix] in IMAGES]
        if self.image is not None:
            images = [suffix for suffix in sample if suffix == self.image]
        has = ", ".join(f".{printable(suffix)}" for suffix in sample)
        if not images:
            raise UserError(
                f"{named} has no image, but {has}: take it out of the shard, or give the suffix of "
                "its image as --data.dataset.image (npy and the like need a --data.range, too)"
            )
        if len(images) > 1:
            raise UserError(
                f"{named} has several images ({has}): give the suffix of those to train on, as in "
                f"--data.dataset.image {images[0]}"
            )
        member = sample[images[0]]
        self.labels.append(_label_in(sample, named))
        self.offsets.append(member.offset_data)
        self.sizes.append(member.size)
        self.names.append(member.name.removeprefix("./").encode("utf-8", "surrogateescape"))


def _label_in(sample: dict[str, Any], named: str) -> str | None:
    """A sample's label, as text; `None` without one."""
    content = sample.get("cls", sample.get("json"))
    if content is None:
        return None
    if "cls" in sample:
        try:
            return str(int(content))
        except ValueError as error:
            shown = printable(content[:20].decode(errors="backslashreplace"))
            raise UserError(f"{named} has '{shown}' in .cls, but no whole number") from error
    try:
        label = json.loads(content)["label"]
    except (KeyError, TypeError):
        return None
    except ValueError as error:
        raise UserError(f"{named} has a .json that cannot be read ({error})") from error
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise UserError(f"{named}: label in .json must be a whole number or a text")
    return None if label is None else str(label)
