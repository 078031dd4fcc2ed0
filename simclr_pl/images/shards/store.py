"""Ranges of many shards: files stay open, blocks of far shards lie in a bounded cache on disk."""

import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from simclr_pl.core.errors import UserError
from simclr_pl.images.shards.transport import Shard, fetch, is_remote
from simclr_pl.writing import beside, cannot_write, sweep

BLOCK = 2**22
"""Bytes that are fetched at once into the cache."""

MOST_OPEN = 64
"""Files of shards that a process keeps open."""

THREADS = 16
"""Requests that a process makes at the same time."""


class Range(NamedTuple):
    """Bytes of a shard: the number of the shard, the first byte, and how many."""

    shard: int
    start: int
    size: int


class Store:
    """Reads ranges of shards, in any process.

    Far shards are cached as long as there is room for them, the first ones first, and each of these
    is fetched once. Images of the others are fetched one by one, each time: in a random order a
    cache that drops the oldest would hold the next image no more often.

    Args:
        shards: the tar files.
        cache: folder of the cache.
        room: bytes that all shards in the cache may have together.
    """

    def __init__(self, shards: Sequence[Shard], cache: Path, room: float) -> None:
        self.shards, self.cache = list(shards), cache / "blocks"
        self.kept = [""] * len(self.shards)
        """Names of the shards' folders in the cache; empty for shards that are not kept there."""
        self.used = 0
        for number, shard in enumerate(self.shards):
            if is_remote(shard.address) and self.used + shard.size <= room:
                self.used += shard.size
                mark = repr(shard).encode(errors="surrogateescape")
                self.kept[number] = hashlib.sha256(mark).hexdigest()[:32]
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._ahead: dict[Range, bytes] = {}

    def read(self, wanted: Range) -> bytes:
        """The bytes of a range.

        Raises:
            UserError: they cannot be read, or the shard has changed.
        """
        self._here()
        shard = self.shards[wanted.shard]
        if wanted in self._ahead:
            return self._ahead.pop(wanted)
        if not is_remote(shard.address):
            return self._local(wanted)
        if not self.kept[wanted.shard]:
            return fetch(shard, wanted.start, wanted.size)
        end = wanted.start + wanted.size
        return b"".join(
            self._block(
                wanted.shard, block, max(wanted.start - block * BLOCK, 0), end - block * BLOCK
            )
            for block in _blocks(wanted)
        )

    def ahead(self, wanted: Iterable[Range]) -> None:
        """Fetches what is going to be read next, many ranges at a time.

        Raises:
            UserError: as `read`.
        """
        self._here()
        self._ahead.clear()
        far = [each for each in wanted if is_remote(self.shards[each.shard].address)]
        blocks = {(each.shard, b) for each in far if self.kept[each.shard] for b in _blocks(each)}
        missing = [each for each in sorted(blocks) if not self._path(*each).exists()]
        single = list({each for each in far if not self.kept[each.shard]})
        if not missing and not single:
            return
        with ThreadPoolExecutor(THREADS) as pool:
            # (Blocks lie on the disk then: none of them is held in memory meanwhile.)
            done = [pool.submit(self._block, *each, 0, 0) for each in missing]
            got = pool.map(
                lambda each: fetch(self.shards[each.shard], each.start, each.size), single
            )
            try:
                self._ahead.update(zip(single, got, strict=True))
                for each in done:
                    each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _here(self) -> None:
        """Opens files of its own in a process that was forked."""
        if self._process != os.getpid():
            self._begin()

    def _path(self, number: int, block: int) -> Path:
        return self.cache / self.kept[number] / str(block)

    def _block(self, number: int, block: int, start: int, end: int) -> bytes:
        """Bytes of a shard's block, from the cache; a block that is not there is fetched and kept.

        Args:
            number: of the shard.
            block: its number.
            start: the first byte, from the block's begin.
            end: behind the last one; beyond the block, all of them are meant.
        """
        path, shard = self._path(number, block), self.shards[number]
        size = min(BLOCK, shard.size - block * BLOCK)
        with suppress(OSError), path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == size:
                return os.pread(file.fileno(), min(end, size) - start, start)
        held = fetch(shard, block * BLOCK, size)
        unfinished = beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(held)
            unfinished.replace(path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            if not isinstance(error, FileNotFoundError):  # another run has made room
                raise cannot_write(path, error, "--data.dataset.cache") from error
        return held[start:end]

    def _local(self, wanted: Range) -> bytes:
        shard = self.shards[wanted.shard]
        try:
            file = self._files.pop(wanted.shard, None)
            if file is None:
                file = os.open(shard.address, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._files[wanted.shard] = file
            if len(self._files) > MOST_OPEN:
                os.close(self._files.popitem(last=False)[1])
            about = os.fstat(file)
            if (about.st_size, str(about.st_mtime_ns)) != (shard.size, shard.stamp):
                raise UserError(
                    f"{shard.address} has changed since its index was read: start the run again "
                    "(--resume says what has changed)"
                )
            return os.pread(file, wanted.size, wanted.start)
        except OSError as error:
            raise UserError(f"{shard.address} cannot be read ({error.strerror})") from error

    def __getstate__(self) -> dict[str, Any]:
        """Without files and bytes, for workers that are spawned."""
        return {**self.__dict__, "_files": OrderedDict(), "_ahead": {}, "_process": -1}


def make_room(stores: Sequence[Store], room: float) -> None:
    """Removes what other data sets have left in the cache, the oldest first, down to `room` bytes.

    Args:
        stores: of all splits of a data set, in one cache; their shards stay.
        room: bytes that all shards in the cache may have together.
    """
    own = {name for store in stores for name in store.kept if name}
    others, total = [], sum(store.used for store in stores)
    for cache in {store.cache for store in stores}:
        for name in own:
            sweep(cache / name)
        for folder in cache.iterdir() if cache.is_dir() else ():
            if folder.name not in own:
                with suppress(OSError):
                    size = sum(block.stat().st_size for block in folder.iterdir())
                    others.append((folder.stat().st_mtime, size, folder))
                    total += size
    for _, size, folder in sorted(others):
        if total > room:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def _blocks(wanted: Range) -> range:
    return range(wanted.start // BLOCK, -(-(wanted.start + wanted.size) // BLOCK))


def in_threads(call: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What a call returns of each item, in their order, many at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, items))
