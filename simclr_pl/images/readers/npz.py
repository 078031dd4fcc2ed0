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
from simclr_pl.images.readers.reader import Raw, first_line


def load_arrays(path: Path, remedy: str) -> dict[str, Any]:
    """All arrays of an .npz file; `remedy` is what to do where it is none, or not whole."""
    # NumPy would take a single array too, and leaves an archive open that it cannot read.
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
    """A NumPy file as MedMNIST's: `train_images`, `train_labels`, and so for val and test.

    Images are uint8 `[N, H, W]` or `[N, H, W, C]`, labels `[N]` or `[N, 1]`; labels may be missing.
    The classes are the labels that occur in any split, by whatever numbers: those are their names.
    """
    if not root.is_file():
        raise UserError(f"there is no file {root}: give the .npz file as --data.root")
    arrays = load_arrays(root, "save it again with numpy.savez")
    if "train_images" not in arrays:
        raise UserError(
            f"{root} has no array 'train_images', only {', '.join(arrays) or 'nothing'}"
        )

    splits = [name for name in ("train", "val", "test") if f"{name}_images" in arrays]
    images = {name: _pixels_of(arrays, name, root) for name in splits}
    labels = {name: _labels_of(arrays, name, root) for name in splits}
    # As Python's numbers: int64 and uint64 have no common type in NumPy.
    found = {label for part in labels.values() for label in np.unique(part).tolist()}
    names = sorted(found - {UNLABELLED})
    if names and names[0] < 0:
        raise UserError(
            f"{root} has a label {names[0]}: only {UNLABELLED}, for unlabelled, may be below 0"
        )
    place_of = {UNLABELLED: UNLABELLED} | {label: place for place, label in enumerate(names)}
    sources = {}
    for name in splits:
        known, where = np.unique(labels[name], return_inverse=True)
        places = np.array([place_of[label] for label in known.tolist()], np.int64)
        sources[name] = ArrayImages(images[name], torch.from_numpy(places[where]))
    classes = tuple(map(str, names))
    return Raw(sources["train"], sources.get("test"), classes, sources.get("val"))


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
    """`[N]`, whole numbers as they stand there."""
    count = len(arrays[f"{split}_images"])
    labels: np.ndarray[Any, Any] = arrays.get(f"{split}_labels", np.full(count, UNLABELLED))
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{root}: {split}_labels is {labels.dtype} {[*labels.shape]}, but must be whole "
            f"numbers [{count}] or [{count}, 1], one for each image"
        )
    return labels.reshape(count)
