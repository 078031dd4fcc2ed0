"""Fashion-MNIST: IDX files that torchvision downloads, or Debian's package has."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.errors import UserError
from simclr_pl.images.readers.reader import Entry, Raw, first_line

FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four gzipped files."""

_FILES = (
    "the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into {root}/FashionMNIST/raw, "
    "or install Debian's package dataset-fashion-mnist"
)

_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _folder_of(root: Path) -> Path | None:
    names = [f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
    for folder in (root / "FashionMNIST" / "raw", FASHION_DEBIAN):
        if all((folder / n).is_file() or (folder / f"{n}.gz").is_file() for n in names):
            return folder
    return None


def _read(root: Path) -> Raw:
    """Reads Fashion-MNIST's IDX files, below `root` or where Debian's package puts them."""
    folder = _folder_of(root)
    if folder is None:
        raise UserError(f"Fashion-MNIST is not in {root}: put {_FILES.format(root=root)}")

    def split(prefix: str) -> ArrayImages:
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise UserError(
                f"{folder} has {len(images)} images in {prefix}-images-idx3-ubyte, and "
                f"{len(labels)} labels in {prefix}-labels-idx1-ubyte: copy both again"
            )
        return ArrayImages(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())

    return Raw(split("train"), test=split("t10k"), classes=_CLASSES)


def _is_there(root: Path) -> bool:
    return _folder_of(root) is not None


def _fetch(root: Path, into: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(into, download=True)


def _read_idx(path: Path, dims: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An IDX file of bytes (LeCun's MNIST format), gzipped or not."""
    try:
        if path.is_file():
            raw = path.read_bytes()
        else:
            path = path.with_name(path.name + ".gz")
            raw = gzip.decompress(path.read_bytes())
        return _array_of(raw, dims)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} is truncated or not an IDX file ({first_line(error)}): copy it again"
        ) from error


def _array_of(raw: bytes, dims: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of an IDX file's content; any `ValueError` says why there is none."""
    if raw[:4] != bytes((0, 0, 8, dims)):  # 8: bytes without a sign
        raise ValueError(f"it begins {raw[:4].hex(' ')}" if raw else "it is empty")
    shape = np.frombuffer(raw, ">i4", dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


FASHION_MNIST = Entry(_read, _fetch, _is_there, _FILES)
