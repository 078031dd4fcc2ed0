"""A packed set: a folder with one file of pixels and an index of the images."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNGROUPED
from simclr_pl.core.data.sources import Source
from simclr_pl.core.errors import UserError
from simclr_pl.images.names import Names
from simclr_pl.images.readers.npz import load_arrays
from simclr_pl.images.readers.packed_images import MappedFile, PackedImages
from simclr_pl.images.readers.reader import SPLITS, Raw
from simclr_pl.writing import whole

PIXELS, INDEX = "pixels.uint8", "index.npz"
"""Names of the two files."""

FORMAT = 1
"""Version of the index that `save_index` writes; another one is refused."""

_ARRAYS = frozenset({"format", "sizes", "labels", "classes", "counts"})
"""Arrays of every index. Indices of older versions have no `names`."""


def save_pixels(file: BinaryIO, parts: Iterable[Tensor]) -> None:
    """Writes `uint8` tensors one after the other, and waits until the disk has them."""
    for part in parts:
        file.write(part.numpy().data)
    file.flush()
    os.fsync(file.fileno())


def save_index(
    folder: Path, sizes: Tensor, splits: Mapping[str, Source], classes: tuple[str, ...]
) -> None:
    """Writes the sizes, labels and names of the images whose pixels a packed set has.

    Args:
        folder: the packed set.
        sizes: `int64 [N, 2]`, height and width of each image in pixels.
        splits: the N images, split by split, in the order of `SPLITS`.
        classes: names in the order of labels.
    """
    names = [name for split in splits.values() for name in split.names or ()]
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "sizes": sizes.numpy().astype(np.int32),
        "labels": torch.cat([split.labels for split in splits.values()]).numpy(),
        "classes": np.array(classes, dtype=np.str_),
        "counts": np.array([len(splits.get(name, ())) for name in SPLITS]),
        "names": np.frombuffer(b"\0".join(names), np.uint8),
    }
    groups: list[Any] = [getattr(split, "groups", None) for split in splits.values()]
    if all(of is not None for of in groups):  # in all splits, or in none
        known = getattr(splits["train"], "group_names", ())
        arrays["groups"] = torch.cat(groups).numpy()
        arrays["group_names"] = np.frombuffer(b"\0".join(known), np.uint8)
    with whole(folder / INDEX) as file:
        np.savez_compressed(file, **arrays)


def read_packed(root: Path) -> Raw:
    """A folder of images as `pack` has written it, mapped into memory."""
    index = _read_index(root)
    sizes = torch.from_numpy(index["sizes"].astype(np.int64))
    labels = torch.from_numpy(index["labels"].astype(np.int64))
    ends = (3 * sizes.prod(1)).cumsum(0)
    starts = ends - 3 * sizes.prod(1)
    pixels, file = _mapped(root / PIXELS, int(ends[-1])), MappedFile(root / PIXELS)
    names = None
    if "names" in index:
        letters = index["names"]
        zeros = np.append((letters == 0).nonzero()[0], len(letters))
        names = Names(letters[letters != 0], zeros - np.arange(len(zeros)))
    groups = torch.from_numpy(index["groups"].astype(np.int64)) if "groups" in index else None
    found = index["group_names"].tobytes() if groups is not None else b""
    group_names = found.split(b"\0") if found else ()
    splits: dict[str, PackedImages] = {}
    counts = index["counts"].tolist()
    for name, count, stop in zip(SPLITS, counts, np.cumsum(counts).tolist(), strict=True):
        if count:
            here = slice(stop - count, stop)
            # A split's own pixels: no other's are taken to a GPU with them.
            begin, end = int(starts[here][0]), int(ends[here][-1])
            splits[name] = PackedImages(
                pixels[begin:end], sizes[here], starts[here] - begin, labels[here],
                None if names is None else names.at(np.arange(stop - count, stop)), file,
                None if groups is None else groups[here], group_names,
            )  # fmt: skip
    return Raw(**splits, classes=tuple(map(str, index["classes"].tolist())))


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


def _fits(
    sizes: Any, labels: Any, counts: Any, classes: Any, names: Any = None, groups: Any = None,
    group_names: Any = None, **_: Any,
) -> bool:  # fmt: skip
    """Whether kinds and shapes of the arrays fit each other."""
    if names is not None and (names.dtype != np.uint8 or (names == 0).sum() != len(labels) - 1):
        return False
    if groups is not None:
        of = 0 if group_names is None or not group_names.size else 1 + (group_names == 0).sum()
        whole_numbers = groups.dtype.kind in "iu" and groups.shape == labels.shape
        if not whole_numbers or groups.min() < UNGROUPED or groups.max() >= of:
            return False
    numbers = all(array.dtype.kind in "iu" for array in (sizes, labels, counts))
    return bool(
        numbers and sizes.ndim == 2 and sizes.shape[1] == 2 and len(sizes) and (sizes > 0).all()
        and labels.shape == (len(sizes),) and classes.ndim == 1
        and counts.shape == (len(SPLITS),) and counts.sum() == len(sizes)
        and (counts >= 0).all() and counts[0] > 0
    )  # fmt: skip


def _mapped(path: Path, size: int) -> Tensor:
    """`uint8 [size]`, the bytes of a file."""
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
