"""Arrays as a data set: .npz and .npy files, HDF5, zarr, named as MedMNIST names them.

All but .npz are mapped or read item by item, never as a whole: they may be larger than memory.
Those that fit are read once.
"""

import os
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.data.sources import MAX_PIXELS, Source, Statistics
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.images.files.decode import BadImageError, DecodedImage, check_size
from simclr_pl.images.numbers.read import as_tensor
from simclr_pl.images.numbers.sources import Numbers, counted_in
from simclr_pl.images.readers.items import MEMORY_BYTES
from simclr_pl.images.readers.npz import in_memory, load_arrays, of_arrays, whole_array
from simclr_pl.images.readers.reader import Raw
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import WorkerImages

KINDS = ("npz", "npy", "hdf5", "zarr")


def read_stored(root: Path, kind: str, reading: Reading | None = None) -> Raw:
    """Reads arrays `train_images` `[N, H, W]` or `[N, H, W, C]`, `train_labels`, `train_groups`.

    Those of val and test are read too; labels and groups may be missing. Images are uint8 or (with
    a range) of other numbers, labels `[N]` or `[N, 1]`, groups `[N]` texts or whole numbers. The
    classes are the numbers that occur as labels in any split.

    Args:
        root: of `npy` the folder of the files (or one file, which is train's images); of `npz`,
            `hdf5` and `zarr` what the library opens.
        kind: one of `KINDS`.
        reading: how images are read; arrays with numbers that are not finite are refused, or read
            item by item, where bad images are skipped.

    Raises:
        UserError: nothing there; arrays that are missing or of another shape or kind.
    """
    if not (root.is_file() if kind == "npz" else root.exists()):
        what = f"there is no file {root}" if kind == "npz" else f"there is no {root}"
        raise UserError(f"{what}: give the file (of npy and zarr the folder) as --data.root")
    return of_arrays(_opened(root, kind), root, partial(_source, root, kind, reading or Reading()))


def _source(
    root: Path, kind: str, reading: Reading, name: str, array: Any, labels: Tensor
) -> Source:
    size = int(np.prod(array.shape)) * array.dtype.itemsize
    if kind != "npz" and size > MEMORY_BYTES:
        return StoredNumbers(root, kind, name, labels)
    try:
        return in_memory(whole_array(array, f"{root}: {name}"), labels, f"{root}: {name}")
    except UserError:
        # (Damaged parts of whole numbers, and NaN, are found image by image.)
        if reading.on_bad_image == "skip" and (array.dtype.kind == "f" or array.dtype == np.uint8):
            return StoredNumbers(root, kind, name, labels)
        raise


def _opened(root: Path, kind: str) -> Mapping[str, Any]:
    """Arrays by name.

    Raises:
        UserError: they cannot be opened.
    """
    if kind == "npz":
        return load_arrays(root, "save it again with numpy.savez")
    try:
        if kind == "npy":
            files = {"train_images": root} if root.is_file() else _npy_files(root)
            return {n: np.load(f, mmap_mode="r", allow_pickle=False) for n, f in files.items()}
        package = {"hdf5": "h5py", "zarr": "zarr"}[kind]
        try:
            library = import_module(package)
        except ImportError as error:
            raise UserError(
                f"{root} needs the package {package}: pip install 'simclr_pl[{kind}]'"
            ) from error
        file = library.File(root, "r") if kind == "hdf5" else library.open_group(root, mode="r")
        return {name: file[name] for name in file if hasattr(file[name], "shape")}
    except UserError:
        raise
    except Exception as error:  # libraries raise anything for broken files
        raise UserError(f"{root} cannot be read as {kind} ({in_one_line(error)})") from error


def _npy_files(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(root.glob("*.npy"))}


class StoredNumbers(Numbers, WorkerImages):
    """Images of an array, read item by item by workers.

    Args:
        root: of the file or folder.
        kind: one of `KINDS`.
        key: the array's name.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
    """

    pixel_dtype = torch.float32

    def __init__(self, root: Path, kind: str, key: str, labels: Tensor) -> None:
        super().__init__(labels)
        self.root, self.kind, self.key = root, kind, key
        self.places = torch.arange(len(labels))
        self._open: tuple[int, Any] | None = None
        array = self._array()
        self.channels = 1 if len(array.shape) == 3 else int(array.shape[-1])
        self.side = min(map(int, array.shape[1:3]))
        self._dtype = as_tensor(np.zeros(1, array.dtype)).dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of the array, as it is read."""
        return self._dtype

    def name(self, place: int) -> str:
        """The image's name in errors."""
        return f"{self.root}: {self.key}[{int(self.places[place])}]"

    def numbers(self, place: int) -> Tensor:
        """An image's numbers: `[C, H, W]`.

        Raises:
            BadImageError: it cannot be read, or has numbers that are not finite.
        """
        try:
            item = np.asarray(self._array()[int(self.places[place])])
            return as_tensor(item[None] if item.ndim == 2 else item.transpose(2, 0, 1))
        except UserError:
            raise
        except Exception as error:  # libraries raise anything for broken files
            why = in_one_line(error) if not isinstance(error, ValueError) else str(error)
            raise BadImageError(f"{self.name(place)} cannot be read ({why})", why) from error

    def content(self, place: int) -> bytes:
        """The image's numbers, as bytes."""
        return self.numbers(place).numpy().tobytes()

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> DecodedImage:
        """Reads an image and puts it on a scale from 0 to 1."""
        read = self.numbers(place)
        check_size(self.name(place), read.shape[2], read.shape[1], max_pixels)
        return DecodedImage(self.scaled(read))

    def keep(self, index: Tensor) -> None:
        """Keeps the places at `index` alone."""
        self.places = self.places[index]

    def statistics(self) -> Statistics:
        """Counted in a sample."""
        return counted_in(self)

    def _array(self) -> Any:
        """The array, opened in this process: handles of HDF5 (npz has none) survive no fork."""
        if self._open is None or (self.kind != "npz" and self._open[0] != os.getpid()):
            self._open = os.getpid(), _opened(self.root, self.kind)[self.key]
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the handle, for workers that are spawned."""
        return {**self.__dict__, "_open": None}
