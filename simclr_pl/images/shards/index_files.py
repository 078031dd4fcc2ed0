"""Indexes of shards in files: one is made once, kept, and used for the same shard elsewhere."""

import hashlib
import io
import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from simclr_pl.core.errors import UserError
from simclr_pl.images.names import Names
from simclr_pl.images.shards.addresses import INDEX
from simclr_pl.images.shards.index import Index, scanned, tail_of
from simclr_pl.images.shards.transport import Shard, attempt, fetch, is_remote, path_in, system_of
from simclr_pl.writing import make_folder, whole

FORMAT = 2
"""Version of an index file; another one is written anew."""


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
    kept, far = cache / "index" / f"{digest}{INDEX}", is_remote(shard.address)
    files = [kept] if far else [Path(shard.address + INDEX), kept]
    for file in files:
        found = _kept(file, mark)
        if found is not None:
            return found
    try:
        made = (_beside(shard, image) if far else None) or scanned(shard, image)
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


def _beside(shard: Shard, image: str | None) -> Index | None:
    """The index that was put beside a far shard; `None` without one, or with another shard's.

    The index was made of a file elsewhere, whose time and ETag are others. The shard is the same
    one if it has the same size, and the same bytes from the header of its last image on.
    """
    address = shard.address + INDEX
    try:
        content = attempt(address, "read", lambda: system_of(address).cat_file(path_in(address)))
        found = _loaded(io.BytesIO(content))
        if found is None:
            return None
        (form, size, _, of), index = json.loads(found[0]), found[1]
        if (form, size, of) != (FORMAT, shard.size, image):
            return None
        same = hashlib.sha256(fetch(shard, *tail_of(shard, index))).digest() == index.tail
    except (UserError, TypeError, ValueError):  # a walk over the shard says what is wrong, if it is
        return None
    return index if same else None


def _save(file: Path, mark: str, index: Index) -> None:
    with whole(file, "--data.dataset.cache") as out:
        np.savez(
            out, mark=np.array(mark), offsets=index.offsets, sizes=index.sizes, codes=index.codes,
            words=np.array(json.dumps(index.words)), letters=index.names.letters,
            ends=index.names.ends, others=np.array(index.others),
            tail=np.frombuffer(index.tail, np.uint8),
        )  # fmt: skip


def _kept(file: Path, mark: str) -> Index | None:
    """An index from its file; `None` where there is none of this state of the shard."""
    try:
        with file.open("rb") as opened:
            found = _loaded(opened, mark)
    except OSError:
        return None
    return found and found[1]


def _loaded(file: BinaryIO, mark: str | None = None) -> tuple[str, Index] | None:
    """An index and its mark; `None` for a broken file, or one of another mark."""
    try:
        with np.load(file, allow_pickle=False) as got:
            of = got["mark"].item()
            if mark not in (None, of):
                return None
            words = tuple(json.loads(got["words"].item()))
            names = Names(got["letters"], got["ends"])
            others, tail = int(got["others"]), got["tail"].tobytes()
            arrays = got["offsets"], got["sizes"], got["codes"]
            return of, Index(*arrays, words, names, others, tail)
    except Exception:  # NumPy and zipfile raise anything of broken files
        return None
