"""A small data set of each kind that is read, with what was written: the table of sources."""

import hashlib
import io
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import tifffile
import torch
from hub_files import table
from manifests import write_manifest
from noise import pixels
from number_files import SUFFIXES, Array, deep, write_numbers, write_stored
from PIL import Image
from shard_files import write_tar
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10

from simclr_pl.commands.pack.pack import pack
from simclr_pl.images.readers import fashion_mnist, stored
from simclr_pl.images.readers.digits import read_digits

COUNT = 23
"""Images of a set."""

CLASSES = ("ant", "bee", "cat")


class Made(NamedTuple):
    """A data set that was written, and its train split as it was meant.

    Attributes:
        given: the option `data.dataset`.
        root: the option `data.root`.
        images: `[C, H, W]` each, numbers as they were written.
        labels: of each image.
        groups: names of their groups; `None` without groups.
        workers: whether workers cut crops from the images, which else come whole.
        range: the option `data.range`; `None` for 8-bit images.
        more: other options of the data.
    """

    given: Any
    root: Path
    images: Sequence[Array]
    labels: Sequence[int]
    groups: Sequence[str] | None = None
    workers: bool = False
    range: tuple[float, float] | None = None
    more: dict[str, Any] = {}  # noqa: RUF012 - a tuple's default, which nobody writes to

    @property
    def scale(self) -> tuple[float, float] | None:
        """The numbers that are 0 and 1 in a batch; `None` where a batch has bytes."""
        numbers = self.workers and self.given in ("npy", "hdf5", "zarr")
        return self.range or ((0.0, 255.0) if numbers else None)


LABELS = [place * len(CLASSES) // COUNT for place in range(COUNT)]
GROUPS = [f"place {place % 5}" for place in range(COUNT)]


def sized(odd: bool) -> list[Array]:
    """Images in colours, of one size or of several."""
    return [pixels(3, 12 + odd * (i % 3), 11 + odd * (i % 2), seed=i) for i in range(COUNT)]


def encoded(image: Array) -> bytes:
    """`[C, H, W]` as a PNG."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def filled(folder: Path, images: Sequence[Array]) -> list[str]:
    """Files in a folder a class, in the order of the images; returns their names."""
    names = [f"{CLASSES[LABELS[i]]}/{i:02}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(image))
    return names


# Arrays ------------------------------------------------------------------------------------------


def digits(_: Path, patch: pytest.MonkeyPatch) -> Made:
    bunch = load_digits()
    pixels = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    place_of = {image.tobytes(): place for place, image in enumerate(pixels)}
    train: Any = read_digits(Path()).train  # its own tests know which ones are train's
    places = [place_of[image.numpy().tobytes()] for image in train.images[:, 0]]
    return Made("digits", Path("data"), pixels[places][:, None], bunch.target[places].tolist())


def fashion(root: Path, patch: pytest.MonkeyPatch) -> Made:
    patch.setattr(fashion_mnist, "FASHION_DEBIAN", root / "none")
    raw, images, labels = root / "FashionMNIST" / "raw", pixels(COUNT, 28, 28), np.array(LABELS)
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
            (raw / f"{split}-{name}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    return Made("fashion_mnist", root, list(images[:, None]), LABELS)


def cifar(root: Path, patch: pytest.MonkeyPatch) -> Made:
    folder, images = root / "cifar-10-batches-py", pixels(COUNT, 3, 32, 32)
    folder.mkdir(parents=True)
    batch = {"data": images.reshape(COUNT, -1), "labels": LABELS}
    lists = {"train_list": batch, "test_list": batch, "meta": {"label_names": list("abcdefghij")}}
    for attribute, content in lists.items():
        path = folder / attribute
        path.write_bytes(pickle.dumps(content))
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        meta = {"filename": attribute, "key": "label_names", "md5": md5}
        patch.setattr(CIFAR10, attribute, meta if attribute == "meta" else [[attribute, md5]])
    return Made("cifar10", root, list(images), LABELS)


def arrays(
    root: Path, patch: pytest.MonkeyPatch, kind: str, depth: Any = np.uint8, on_disk: bool = False
) -> Made:
    """In memory, or read item by item; 8 bits in colours, or numbers in 5 bands."""
    patch.setattr(stored, "MEMORY_BYTES", 0 if on_disk else 2**20)
    bands = 3 if depth == np.uint8 else 5
    images = deep(COUNT, 14, 13, bands, top=256 if depth == np.uint8 else 4096, kind=depth)
    where = write_stored(root / "set", kind, train_images=images, train_labels=np.array(LABELS))
    found = list(images.transpose(0, 3, 1, 2))
    limits = None if depth == np.uint8 else (100.0, 4000.0)
    return Made(kind, where, found, LABELS, range=limits, workers=on_disk)


# Files -------------------------------------------------------------------------------------------


def folder(root: Path, _: pytest.MonkeyPatch) -> Made:
    images = sized(odd=True)
    filled(root, images)
    return Made("folder", root, images, LABELS, workers=True)


def numbers(root: Path, _: pytest.MonkeyPatch, suffixes: Sequence[str], bands: int) -> Made:
    images = [deep(bands, 12 + i % 3, 11, top=4096, seed=i) for i in range(COUNT)]
    for i, image in enumerate(images):
        suffix = suffixes[i % len(suffixes)]
        write_numbers(root / CLASSES[LABELS[i]] / f"{i:02}{suffix}", image)
    return Made("folder", root, images, LABELS, workers=True, range=(100.0, 4000.0))


def pages(root: Path, _: pytest.MonkeyPatch) -> Made:
    """Files of one to three images, in a manifest with groups."""
    images, rows = list[Array](), []
    labels, groups = list[int](), list[str]()
    for i in range(COUNT // 2):
        name, label, group = f"{i:02}.tif", i % 3, f"place {i % 5}"
        rows.append((name, CLASSES[label], group))
        with tifffile.TiffWriter(root / name) as file:
            for page in range(1 + i % 3):
                images.append(deep(1, 12, 11, top=4096, seed=3 * i + page))
                file.write(images[-1][0])
                labels.append(label)
                groups.append(group)
    where = write_manifest(root / "list.csv", rows, "path,label,group")
    more = {"pages": "images"}
    return Made("manifest", where, images, labels, groups, True, (100.0, 4000.0), more)


def manifest(root: Path, _: pytest.MonkeyPatch) -> Made:
    images = sized(odd=True)
    names = filled(root, images)
    rows = zip(names, [CLASSES[label] for label in LABELS], GROUPS, strict=True)
    where = write_manifest(root / "list.csv", list(rows)[::-1], "path,label,group")
    return Made("manifest", where, images, LABELS, GROUPS, workers=True)


def packed(root: Path, patch: pytest.MonkeyPatch) -> Made:
    made = manifest(root, patch)
    where = pack(str(made.root), str(root / "packed"), num_workers=0)
    return made._replace(given="packed", root=where, workers=False)


# Libraries ---------------------------------------------------------------------------------------


def hub(root: Path, patch: pytest.MonkeyPatch, kind: str, odd: bool) -> Made:
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    images, where = sized(odd), root / "set"
    data = table([encoded(image) for image in images], LABELS)
    if kind == "parquet":
        where = where.with_suffix(".parquet")
        data.to_parquet(where)
    elif kind == "saved":
        data.save_to_disk(where)
    else:
        filled(where / "train", images)
    return Made(f"hub:{where}", Path("data"), images, LABELS, workers=odd)


def eurosat(root: Path, _: pytest.MonkeyPatch, odd: bool) -> Made:
    images = sized(odd)
    filled(root / "eurosat" / "2750", images)
    return Made("torchvision:EuroSAT", root, images, LABELS, workers=odd)


def shards(root: Path, patch: pytest.MonkeyPatch) -> Made:
    patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    images = sized(odd=True)
    for first in range(0, COUNT, 9):
        members = []
        for i in range(first, min(first + 9, COUNT)):
            label = json.dumps({"label": LABELS[i]}).encode()
            members += [(f"{i:02}.png", encoded(images[i])), (f"{i:02}.json", label)]
        write_tar(root / "set" / f"{first:02}.tar", members)
    return Made("shards", root / "set", images, LABELS, workers=True)


class Items(Dataset[Any]):
    """Images of one's own."""

    def __init__(self, images: Sequence[Array]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        return torch.from_numpy(self.images[place]), LABELS[place]


def own(_: Path, patch: pytest.MonkeyPatch, odd: bool, deeper: bool) -> Made:
    images = sized(odd)
    if deeper:
        images = [image.astype(np.uint16) * 257 for image in images]
    limits = (100.0, 65000.0) if deeper else None
    return Made(Items(images), Path("data"), images, LABELS, workers=odd, range=limits)


Write = Callable[[Path, pytest.MonkeyPatch], Made]

WHOLE: dict[str, Write] = {
    "digits": digits,
    "fashion_mnist": fashion,
    "cifar10": cifar,
    **{kind: partial(arrays, kind=kind) for kind in ("npz", "npy", "hdf5", "zarr")},
    "npz of 16 bits": partial(arrays, kind="npz", depth=np.uint16),
    "npy of floats": partial(arrays, kind="npy", depth=np.float32),
    "packed, with groups": packed,
    "hub: parquet": partial(hub, kind="parquet", odd=False),
    "torchvision, one size": partial(eurosat, odd=False),
    "own": partial(own, odd=False, deeper=False),
    "own of 16 bits": partial(own, odd=False, deeper=True),
}
"""Sources that give whole images."""

CUT: dict[str, Write] = {
    **{
        f"{kind} on disk": partial(arrays, kind=kind, depth=np.uint16, on_disk=True)
        for kind in ("npy", "hdf5", "zarr")
    },
    "npy of 8 bits on disk": partial(arrays, kind="npy", on_disk=True),
    "folder": folder,
    "folder of each kind of numbers": partial(numbers, suffixes=SUFFIXES, bands=1),
    "folder of bands": partial(numbers, suffixes=(".tif", ".npy", ".h5"), bands=5),
    "manifest, with groups": manifest,
    "manifest of pages, with groups": pages,
    "hub: saved": partial(hub, kind="saved", odd=True),
    "hub: imagefolder": partial(hub, kind="imagefolder", odd=True),
    "torchvision, many sizes": partial(eurosat, odd=True),
    "shards": shards,
    "own, many sizes": partial(own, odd=True, deeper=False),
    "own of 16 bits, many sizes": partial(own, odd=True, deeper=True),
}
"""Sources whose crops workers cut."""
