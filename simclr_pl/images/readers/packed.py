"""A packed set: a folder with one file of pixels, mapped into memory, and an index of the images.

The pages of a mapped file are those of the system's cache. All ranks and workers of a machine share
them, and pixels that do not fit into memory are read when they are asked for.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from simclr_pl.core.batch import UNGROUPED, Batch, Cut
from simclr_pl.core.data.sources import Source, Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import accepted, name_of
from simclr_pl.images.readers.npz import load_arrays
from simclr_pl.images.readers.reader import SPLITS, Raw
from simclr_pl.images.workers.crops import PHOTOGRAPHS
from simclr_pl.writing import whole

PIXELS, INDEX = "pixels.uint8", "index.npz"
"""Names of the two files."""

FORMAT = 1
"""Version of the index that `save_index` writes; another one is refused."""

_ARRAYS = frozenset({"format", "sizes", "labels", "classes", "counts"})
"""Arrays of every index. Indices of older versions have no `names`."""


class MappedFile:
    """A file that is mapped into memory, and must not become shorter while it is.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, path.stat()

    def check(self) -> None:
        """Looks at the file's size: the system ends a process that reads behind a file's end.

        A mapped file that was removed or replaced meanwhile can still be read.

        Raises:
            UserError: the file has become shorter.
        """
        try:
            now = self.path.stat()
        except OSError:
            return
        same = (now.st_dev, now.st_ino) == (self.found.st_dev, self.found.st_ino)
        if same and now.st_size < self.found.st_size:
            raise UserError(
                f"{self.path} was cut from {self.found.st_size} to {now.st_size} bytes while it "
                "was in use: copy it again, or pack the images again"
            )


class PackedImages:
    """Whole RGB images, whose planes `[3, H, W]` follow each other in one row of pixels.

    Args:
        pixels: `uint8 [M]`, on any device.
        sizes: `int64 [N, 2]`, height and width of each image in pixels.
        starts: `int64 [N]`, where each image begins in `pixels`.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        names: paths of the packed files below the folder of their split; `None` where the index
            has no names.
        file: the file that `pixels` are mapped from.
        groups: `int64 [N]`, numbers of groups, `UNGROUPED` where an image is a group of its own;
            `None` without groups.
        group_names: names of the groups, in the order of their numbers.
    """

    channels = 3
    side: int | None = None

    def __init__(
        self,
        pixels: Tensor,
        sizes: Tensor,
        starts: Tensor,
        labels: Tensor,
        names: Sequence[bytes] | None = None,
        file: "MappedFile | None" = None,
        groups: Tensor | None = None,
        group_names: Sequence[bytes] = (),
    ) -> None:
        self.pixels, self.sizes, self.starts, self.labels = pixels, sizes, starts, labels
        self.names, self.file = names, file
        self.groups, self.group_names = groups, group_names
        # A split and its parts share their pixels, and the copies of these on other devices.
        self._copies: WeakValueDictionary[torch.device, Tensor] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> str:
        """Where the pixels are, in words."""
        there = self.pixels.device.type
        return "a file mapped into memory" if there == "cpu" else f"in memory ({there})"

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields whole images, whatever `cut` is, padded with zeros to the batch's largest."""
        device = self.pixels.device
        pinned = device.type == "cpu" and torch.cuda.is_available()
        for index in plan:
            if self.file is not None and device.type == "cpu":
                self.file.check()
            sizes = self.sizes[index]
            tall, wide = sizes.amax(0).tolist()
            images = torch.zeros(
                len(index), 3, tall, wide, dtype=torch.uint8, device=device, pin_memory=pinned
            )
            places = zip(images, self.starts[index].tolist(), sizes.tolist(), strict=True)
            for there, start, (height, width) in places:
                planes = self.pixels[start : start + 3 * height * width].view(3, height, width)
                there[:, :height, :width] = planes
            labels, places_in_split, sizes = (
                column.to(device, non_blocking=True)
                for column in (self.labels[index], index, sizes)
            )
            groups = None if self.groups is None else self.groups[index].to(device)
            yield Batch(images, labels, places_in_split, epoch, sizes, groups)

    def select(self, index: Tensor) -> "PackedImages":
        """The images at `index`, as a split of their own; nothing is copied."""
        return self._twin(self.pixels, index, self.labels[index])

    def relabel(self, labels: Tensor) -> "PackedImages":
        """The same images with other labels."""
        return self._twin(self.pixels, torch.arange(len(labels)), labels)

    def statistics(self) -> Statistics:
        """Mean and standard deviation of photographs."""
        return PHOTOGRAPHS

    def content(self, place: int) -> bytes:
        """The pixels of an image."""
        start, (height, width) = int(self.starts[place]), self.sizes[place].tolist()
        return self.pixels[start : start + 3 * height * width].cpu().numpy().tobytes()

    def prepared(self, paper: Any, views: Any, workers: int) -> "PackedImages":
        """The same images, whole: views are made on the device.

        Raises:
            UserError: the views' call takes no argument `sizes`.
        """
        call = views.forward if isinstance(views, nn.Module) else views
        if not accepted(call, {"sizes": None}):
            raise UserError(
                f"data.views: packed images have many sizes, and {name_of(views)} takes no "
                "argument 'sizes' (int64 [B, 2], height and width): give its call one, or "
                "subclass SimCLRViews"
            )
        return self

    def on(self, device: torch.device, room: float) -> "PackedImages":
        """The same images on another device, once for all parts of a split.

        Labels, sizes and plan stay on the CPU.
        """
        pixels = self._copies.get(device)
        if self.pixels.device == device or (pixels is None and self.pixels.nbytes > room):
            return self
        if pixels is None:  # another part of the split has not copied them yet
            pixels = self._copies[device] = self.pixels.to(device)
        return self._twin(pixels, torch.arange(len(self)), self.labels)

    def close(self) -> None:
        """Nothing to end."""

    def _twin(self, pixels: Tensor, index: Tensor, labels: Tensor) -> "PackedImages":
        names = None if self.names is None else [self.names[i] for i in index.tolist()]
        starts = self.starts[index]
        groups = None if self.groups is None else self.groups[index]
        how = self.file, groups, self.group_names
        twin = PackedImages(pixels, self.sizes[index], starts, labels, names, *how)
        twin._copies = self._copies
        return twin


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
    names = index["names"].tobytes().split(b"\0") if "names" in index else None
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
                None if names is None else names[here], file,
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
