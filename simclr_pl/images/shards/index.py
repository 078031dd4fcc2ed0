"""Where the images of a tar file are: its index, which is written once and kept in a file."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

from simclr_pl.core.errors import UserError
from simclr_pl.images.shards.transport import Shard, fetch, is_remote
from simclr_pl.writing import make_folder, printable, whole

Array = np.ndarray[Any, Any]

FORMAT = 1
"""Version of an index file; another one is written anew."""

WINDOW = 2**20
"""Bytes that are read at once from an address, to find headers in."""

IMAGES = frozenset(
    [
        *("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpeg", "jpg"),
        *("pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    ]
)
"""Suffixes of images."""

_MANY = 2**16
"""Names whose places are worked out at a time."""

_MEMBER = re.compile(r"((?:.*/)?[^./][^/.]*)\.([^/]+)")
"""A member's key and suffix, as WebDataset splits them: at the first dot of the file's name."""


class Names(Sequence[bytes]):
    """Names in one buffer: about as many bytes as letters.

    Args:
        letters: `uint8`, all names, one behind the other.
        ends: `int64 [N]`, where each name ends.
    """

    def __init__(self, letters: Array, ends: Array) -> None:
        self.letters, self.ends = letters, ends

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Self:
        """The same names."""
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(self.at(np.arange(len(self))[place]))
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.letters[self.ends[place - 1] if place else 0 : self.ends[place]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return self.at(np.arange(len(self)))

    def at(self, places: Array) -> Iterator[bytes]:
        """The names at places, without a list of them."""
        letters = self.letters.data
        for first in range(0, len(places), _MANY):
            some = places[first : first + _MANY]
            starts = np.where(some > 0, self.ends[some - 1], 0)
            for start, end in zip(starts.tolist(), self.ends[some].tolist(), strict=True):
                yield bytes(letters[start:end])


class Index(NamedTuple):
    """The images of a shard, in their order.

    Attributes:
        offsets: `int64 [N]`, where each image's bytes begin.
        sizes: `int64 [N]`, in bytes.
        codes: `int32 [N]`, places of the labels in `words`; -1 for none.
        words: the labels that occur.
        names: paths of the members in the tar file.
        others: members that belong to no sample.
    """

    offsets: Array
    sizes: Array
    codes: Array
    words: tuple[str, ...]
    names: Names
    others: int


def index_of(shard: Shard, image: str | None, cache: Path) -> Index:
    """A shard's index: from its file, or made and written.

    Args:
        shard: the tar file as it is now; an index of another state is made anew.
        image: suffix of the images, where samples have several.
        cache: folder for indexes of shards at addresses, or in folders that cannot be written.

    Raises:
        UserError: the shard is cut off, no tar file, has a sample without an image or with several.
    """
    mark = json.dumps([FORMAT, shard.size, shard.stamp, image])
    digest = hashlib.sha256(shard.address.encode(errors="surrogateescape")).hexdigest()[:32]
    far = cache / "index" / f"{digest}.index"
    files = [far] if is_remote(shard.address) else [Path(f"{shard.address}.index"), far]
    for file in files:
        found = _loaded(file, mark)
        if found is not None:
            return found
    try:
        made = _scanned(shard, image)
    except OSError as error:
        raise UserError(f"{shard.address} cannot be read ({error.strerror or error})") from error
    for file in files:
        try:
            make_folder(file.parent, "--data.dataset.cache")
            _save(file, mark, made)
            break
        except UserError:
            if file == files[-1]:
                raise
    return made


def _save(file: Path, mark: str, index: Index) -> None:
    with whole(file, "--data.dataset.cache") as out:
        np.savez(
            out, mark=np.array(mark), offsets=index.offsets, sizes=index.sizes, codes=index.codes,
            words=np.array(json.dumps(index.words)), letters=index.names.letters,
            ends=index.names.ends, others=np.array(index.others),
        )  # fmt: skip


def _loaded(file: Path, mark: str) -> Index | None:
    """An index from its file; `None` where there is none of this state of the shard."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as got:
            if got["mark"].item() != mark:
                return None
            words = tuple(json.loads(got["words"].item()))
            names = Names(got["letters"], got["ends"])
            others = int(got["others"])
            return Index(got["offsets"], got["sizes"], got["codes"], words, names, others)
    except Exception:  # not there, or broken: NumPy and zipfile raise anything
        return None


# Making an index ----------------------------------------------------------------------------------


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


def _scanned(shard: Shard, image: str | None) -> Index:
    if shard.size == 0:
        raise UserError(f"{shard.address} is empty: write or copy the shard again")
    file: IO[bytes] = (
        _Window(shard)  # type: ignore[assignment]
        if is_remote(shard.address)
        else open(shard.address, "rb")  # noqa: PTH123, SIM115 - closed below
    )
    with file:
        begin = file.read(512)
        if begin[:2] == b"\x1f\x8b" or begin[:3] == b"BZh" or begin[:6] == b"\xfd7zXZ\0":
            raise UserError(
                f"{shard.address} is compressed, so that no image can be read by its place: unpack "
                "the shard (images are compressed already)"
            )
        file.seek(0)
        return _Samples(shard.address, image).read(file)


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
                rest = file.read(512)
                if rest != bytes(512):
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
            raise UserError(f"{named} has no image, but {has}: take it out of the shard")
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
