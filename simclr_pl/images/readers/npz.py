"""NumPy's .npz files: arrays as MedMNIST names them."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.errors import UserError
from simclr_pl.images.readers.reader import SPLITS, Raw, classes_of, first_line


def load_arrays(path: Path, remedy: str) -> dict[str, Any]:
    """All arrays of an .npz file.

    Args:
        path: the file.
        remedy: what the error advises.

    Raises:
        UserError: the file is no .npz file, or not whole.
    """
    # NumPy would take a single array too, and does not close an archive that it cannot read.
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a readable .npz file: {remedy}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is not a readable .npz file ({first_line(error)}): {remedy}"
        ) from error


def read_npz(root: Path) -> Raw:
    """Reads arrays as MedMNIST names them: `train_images`, `train_labels`; likewise val and test.

    Images are uint8 `[N, H, W]` or `[N, H, W, C]`, labels `[N]` or `[N, 1]`; labels may be missing.
    The classes are the numbers that occur as labels in any split.

    Raises:
        UserError: no such file; arrays that are missing or of another shape or kind.
    """
    if not root.is_file():
        raise UserError(f"there is no file {root}: give the .npz file as --data.root")
    arrays = load_arrays(root, "save it again with numpy.savez")
    if "train_images" not in arrays:
        raise UserError(
            f"{root} has no array 'train_images', only {', '.join(arrays) or 'nothing'}"
        )
    splits = [name for name in SPLITS if f"{name}_images" in arrays]
    images = [_pixels_of(arrays, name, root) for name in splits]
    labels = [_labels_of(arrays, name, root) for name in splits]
    places, classes = classes_of(labels, str(root))
    sources = map(ArrayImages, images, places)
    return Raw(**dict(zip(splits, sources, strict=True)), classes=classes)


def _pixels_of(arrays: dict[str, Any], split: str, root: Path) -> Tensor:
    """`[N, C, H, W]`."""
    pixels = arrays[f"{split}_images"]
    if pixels.ndim not in (3, 4):
        raise UserError(
            f"{root}: {split}_images is {[*pixels.shape]}, but must be [N, H, W] or [N, H, W, C]"
        )
    images = torch.from_numpy(pixels)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _labels_of(arrays: dict[str, Any], split: str, root: Path) -> np.ndarray[Any, Any]:
    """`[N]`, whole numbers of the file's own type."""
    count = len(arrays[f"{split}_images"])
    labels: np.ndarray[Any, Any] = arrays.get(f"{split}_labels", np.full(count, UNLABELLED))
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{root}: {split}_labels is {labels.dtype} {[*labels.shape]}, but must be whole "
            f"numbers [{count}] or [{count}, 1], one for each image"
        )
    return labels.reshape(count)
