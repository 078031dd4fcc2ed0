"""WebDataset's tar files as a data set: read by the places of their images, near or far."""

import re
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import Labels
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Choice, construct, spelt_out
from simclr_pl.images.files.formats import suffixes
from simclr_pl.images.files.numeric import SUFFIXES
from simclr_pl.images.hashes import hashes
from simclr_pl.images.names import Names
from simclr_pl.images.readers.encoded import EncodedItems, EncodedNumbers, check_channels, raw_of
from simclr_pl.images.readers.folder import CALLED
from simclr_pl.images.readers.reader import OPTION, SHARDS, Entry, Raw, classes_of, say_once
from simclr_pl.images.shards.addresses import shards_at
from simclr_pl.images.shards.index import Index
from simclr_pl.images.shards.index_files import index_of
from simclr_pl.images.shards.store import Range, Store, in_threads, make_room
from simclr_pl.images.shards.transport import look
from simclr_pl.images.workers.crops import Reading
from simclr_pl.writing import cache_folder, printable


class Options(NamedTuple):
    """What may stand below `init_args`.

    Attributes:
        image: suffix of the images, where samples have several (`jpg`).
        channels: 1 or 3 (default: 1 where all images are gray).
        cache_gb: most bytes that far shards take on this disk, in 10^9.
        cache: folder of these, and of indexes of far shards (default: `~/.cache/simclr_pl/shards`).
    """

    image: str | None = None
    channels: int | None = None
    cache_gb: float = 10.0
    cache: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        given = self.cache and Path(self.cache).expanduser().absolute()
        return given or cache_folder("shards")


def shard_set(given: Any, labels: Labels, reading: Reading) -> Entry:
    """The row of tar files.

    Args:
        given: the name, with `init_args` as in `Options`.
        labels: whether labels are wanted.
        reading: how images are read.

    Raises:
        UserError: an unknown argument, or one out of its range.
    """
    options: Options = construct(Choice(SHARDS, Options, spelt_out(given, OPTION)[1]), OPTION)
    check_channels(options.channels, reading)
    if not isinstance(options.cache_gb, int | float) or not options.cache_gb >= 0:
        raise UserError(
            f"{OPTION}.init_args.cache_gb is {options.cache_gb!r}, but must be 0 or more"
        )
    if options.image in ("cls", "json"):
        raise UserError(f"{OPTION}.init_args.image is {options.image}, but must be of images")

    def prepare(root: Any) -> None:
        parts = _opened(str(root), options).values()
        make_room([part.store for part in parts], options.cache_gb * 1e9)

    def read(root: Any) -> Raw:
        return _read(str(root), options, labels, reading)

    return Entry(read, prepare=prepare)


_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""Whole numbers of 64 bits, as Python writes them."""


class Part(NamedTuple):
    """A split: its shards, the index of each, and what reads them."""

    store: Store
    indexes: list[Index]


def _opened(root: str, options: Options) -> dict[str, Part]:
    """All splits, in their order; indexes are written where there are none."""
    splits = shards_at(root, CALLED)
    if "train" not in splits:
        raise UserError(
            f"{root} has shards of {' and '.join(splits)}, but none of train: give those, too"
        )
    room, parts = options.cache_gb * 1e9, dict[str, Part]()
    for name in sorted(splits, key=list(CALLED).index):
        shards = in_threads(look, splits[name])
        store = Store(shards, options.folder, room)
        room -= store.used
        index = partial(index_of, image=options.image, cache=options.folder)
        parts[name] = Part(store, in_threads(index, shards))
    return parts


def _read(root: str, options: Options, labels: Labels, reading: Reading) -> Raw:
    suffix = "." + (options.image or "").rpartition(".")[2].lower()
    if suffix in SUFFIXES - suffixes() and not reading.numbers:
        raise UserError(
            f"{OPTION}.init_args.image is {options.image}, and such files hold numbers: give "
            "--data.range [LOW,HIGH], as in [0,4095], or auto"
        )
    parts = _opened(root, options)
    kind = ShardNumbers if reading.numbers else ShardImages
    items = {name: kind(part, f"{SHARDS} {root} {name}", reading) for name, part in parts.items()}
    counts = ", ".join(f"{name} {len(of)}" for name, of in items.items())
    shards = sum(len(part.indexes) for part in parts.values())
    others = sum(index.others for part in parts.values() for index in part.indexes)
    left = f"; left out: {others} members that are no samples" if others else ""
    say_once(f"{root}: {shards} shards, images: {counts}{left}")
    known = _labels(root, parts) if labels == "given" else ({}, ())
    return raw_of(items, options.channels, *known)


def _labels(root: str, parts: dict[str, Part]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Labels of each split, `int64 [N]`, and the classes: numbers in rising order, or texts."""
    indexes = [index for part in parts.values() for index in part.indexes]
    words = sorted(set(chain.from_iterable(index.words for index in indexes)))
    if not words:
        say_once(f"{root}: no .cls and no label in .json, all images are unlabelled")
        return {}, ()
    # (Texts such as 07 and 7 are two classes.)
    numbers = all(_NUMBER.fullmatch(word) for word in words)
    code = {word: int(word) if numbers else place for place, word in enumerate(words)}
    found = []
    for part in parts.values():
        each = [
            np.array([*(code[word] for word in index.words), UNLABELLED], np.int64)[index.codes]
            for index in part.indexes
        ]
        found.append(np.concatenate(each))
    if numbers:
        places, classes = classes_of(found, f"{OPTION}: {root}")
    else:
        places, classes = [torch.from_numpy(each) for each in found], tuple(words)
    return dict(zip(parts, places, strict=True)), classes


class ShardImages(EncodedItems):
    """Images of one split's shards, unlabelled at first.

    An image's name is its member's path in the tar file, which does not depend on the shard; where
    two shards use the same path, the shard's name comes before it.

    Args:
        part: the shards and their indexes.
        what: the data set and the split, which begin the images' names in errors.
        reading: how images are read.
    """

    def __init__(self, part: Part, what: str, reading: Reading) -> None:
        indexes = part.indexes
        self.store, self.first = part.store, np.cumsum([0, *(len(i.offsets) for i in indexes)])
        self.offsets = np.concatenate([index.offsets for index in indexes])
        self.sizes = np.concatenate([index.sizes for index in indexes])
        super().__init__(self.sizes, what, reading)
        stems = [Path(shard.address).stem for shard in self.store.shards]
        self.paths = _names(indexes, stems, what)

    @property
    def names(self) -> Sequence[bytes]:
        """Paths of the members, in the order of the images."""
        return self.paths.at(self.places)

    def name(self, place: int) -> str:
        """The image's shard and member, for errors."""
        number = int(self.places[place])
        member = printable(self.paths[number].decode(errors="surrogateescape"))
        return f"{SHARDS} {self.store.shards[self._range(number).shard].address}: {member}"

    def stored_at(self, number: int) -> tuple[bytes | None, str | None, Any]:
        """The image's bytes; `None` where it has none."""
        return self.store.read(self._range(number)) or None, None, None

    def ahead(self, places: Tensor) -> None:
        """Fetches the images at places of the split, many at a time."""
        self.store.ahead(self._range(number) for number in self.places[places].tolist())

    def _range(self, number: int) -> Range:
        shard = int(np.searchsorted(self.first, number, "right")) - 1
        return Range(shard, int(self.offsets[number]), int(self.sizes[number]))


class ShardNumbers(EncodedNumbers, ShardImages):
    """Images of one split's shards, as numbers."""


def _names(indexes: Sequence[Index], stems: Sequence[str], what: str) -> Names:
    """The names of all images, with the shards' own before them where some are there twice."""
    ends = np.cumsum([0, *(len(index.names.letters) for index in indexes)])
    names = Names(
        np.concatenate([index.names.letters for index in indexes]),
        np.concatenate([index.names.ends + end for index, end in zip(indexes, ends, strict=False)]),
    )
    if len(indexes) == 1 or len(np.unique(hashes(names, 0))) == len(names):
        return names
    if len(set(stems)) < len(stems):
        raise UserError(
            f"{OPTION}: {what}: images of different shards have the same names, and shards have, "
            "too: rename the shards, so that each image can be known again"
        )
    say_once(f"{what}: shards use the same keys, so names begin with the shard's")
    return Names.of(
        stem.encode(errors="surrogateescape") + b"/" + name
        for stem, index in zip(stems, indexes, strict=True)
        for name in index.names
    )
