"""A packed set on disk: a directory with one file of pixels, and one that says what is in it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.errors import UserError
from simclr_pl.images.builtin import Raw, load_arrays
from simclr_pl.images.packed import MappedFile, PackedImages
from simclr_pl.writing import whole

PIXELS, INDEX = "pixels.uint8", "index.npz"
"""Names of the two files."""

FORMAT = 1
"""Of what `save_index` writes; another number is refused."""

SPLITS = ("train", "val", "test")
"""In the order of their images."""

_ARRAYS = frozenset({"format", "sizes", "labels", "classes", "counts"})
"""What every packed set has. Those of older versions have no `names`."""


def save_pixels(file: BinaryIO, parts: Iterable[Tensor]) -> None:
    """Writes `uint8` tensors one after the other, and waits until the disk has them."""
    for part in parts:
        file.write(part.numpy().data)
    file.flush()
    os.fsync(file.fileno())


def save_index(
    folder: Path,
    sizes: Tensor,
    labels: Tensor,
    counts: dict[str, int],
    classes: tuple[str, ...],
    names: Sequence[bytes],
) -> None:
    """Writes what the pixels are.

    Args:
        folder: the packed set.
        sizes: `int64 [N, 2]`, height and width of each image in pixels.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        counts: how many images each of `SPLITS` has; none where there is no such split.
        classes: names in the order of labels.
        names: of the N files, each below the folder of its split.
    """
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "sizes": sizes.numpy().astype(np.int32),
        "labels": labels.numpy(),
        "classes": np.array(classes, dtype=np.str_),
        "counts": np.array([counts.get(name, 0) for name in SPLITS]),
        "names": np.frombuffer(b"\0".join(names), np.uint8),
    }
    with whole(folder / INDEX) as file:
        np.savez_compressed(file, **arrays)


def read_packed(root: Path) -> Raw:
    """A folder of images as `pack` has written it, mapped into memory."""
    index = _read_index(root)
    sizes = torch.from_numpy(index["sizes"].astype(np.int64))
    labels = torch.from_numpy(index["labels"].astype(np.int64))
    ends = (3 * sizes.prod(1)).cumsum(0)
    total = int(ends[-1])
    pixels = _mapped(root / PIXELS, total)
    file = MappedFile(root / PIXELS)
    starts = ends - 3 * sizes.prod(1)
    names = index["names"].tobytes().split(b"\0") if "names" in index else None
    found: dict[str, PackedImages | None] = {}
    first = 0
    for name, count in zip(SPLITS, index["counts"].tolist(), strict=True):
        last = first + count
        found[name] = None
        if count:
            # A split's own pixels: no other's are taken to a GPU with them.
            begin, end = int(starts[first]), int(ends[last - 1])
            here = slice(first, last)
            found[name] = PackedImages(
                pixels[begin:end], sizes[here], starts[here] - begin, labels[here],
                None if names is None else names[here], file,
            )  # fmt: skip
        first = last
    train = found["train"]
    assert train is not None
    classes = tuple(str(name) for name in index["classes"].tolist())
    return Raw(train, found["test"], classes, found["val"])


def _read_index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    how = "write one with python -m simclr_pl pack DIR OUT, and give OUT as --data.root"
    if not path.is_file():
        raise UserError(f"{root} holds no packed set ({INDEX} is missing): {how}")
    arrays = load_arrays(path, "pack the images again")
    if "format" in arrays and arrays["format"].tolist() != FORMAT:
        raise UserError(
            f"{root} was packed in format {arrays['format'].tolist()}, and this version reads "
            f"format {FORMAT}: pack it again"
        )
    if not set(arrays) >= _ARRAYS or not _fits(**arrays):
        raise UserError(f"{path} is of no packed set: {how}")
    # In whole numbers it may overflow.
    total = 3 * float(arrays["sizes"].astype(np.float64).prod(1).sum())
    if total > 2**62:
        raise UserError(
            f"{path} speaks of {total:.3g} bytes of pixels, so it is broken: copy it again, or "
            "pack the images again"
        )
    return arrays


def _fits(sizes: Any, labels: Any, counts: Any, classes: Any, names: Any = None, **_: Any) -> bool:
    """Whether the arrays can be about the same images."""
    if names is not None and (names.dtype != np.uint8 or (names == 0).sum() != len(labels) - 1):
        return False
    numbers = all(array.dtype.kind in "iu" for array in (sizes, labels, counts))
    return bool(
        numbers and sizes.ndim == 2 and sizes.shape[1] == 2 and len(sizes) and (sizes > 0).all()
        and labels.shape == (len(sizes),) and classes.ndim == 1
        and counts.shape == (len(SPLITS),) and counts.sum() == len(sizes)
        and (counts >= 0).all() and counts[0] > 0
    )  # fmt: skip


def _mapped(path: Path, size: int) -> Tensor:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is missing: copy it again, or pack the images again") from error
    if found != size:
        raise UserError(
            f"{path} has {found} bytes, but its images have {size}: copy it again, or pack the "
            "images again"
        )
    # Copied on writing means opened for reading alone; the pages are shared until written to.
    # (torch's own `from_file` takes no path that is not UTF-8.)
    return torch.from_numpy(np.memmap(path, np.uint8, "c"))
