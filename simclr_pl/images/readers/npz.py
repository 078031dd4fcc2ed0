"""Arrays as MedMNIST names them, and NumPy's .npz files of them."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages, Source
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.core.views.parameters import MIN_SIDE
from simclr_pl.images.groups import group_images, names_in_array
from simclr_pl.images.numbers.read import as_tensor, is_channels_first
from simclr_pl.images.numbers.sources import MemoryNumbers
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


def of_arrays(
    arrays: Mapping[str, Any], root: Path, source: Callable[[str, Any, Tensor], Source]
) -> Raw:
    """Splits of arrays by MedMNIST's names.

    Args:
        arrays: by name: NumPy's, or what has their `shape`, `dtype` and items.
        root: where they are, for errors.
        source: makes a split of the images' name, images and labels.

    Raises:
        UserError: arrays that are missing or of another shape or kind; a group in two splits.
    """
    if "train_images" not in arrays:
        raise UserError(
            f"{root} has no array 'train_images', only {', '.join(arrays) or 'nothing'}: give the "
            "images that name, and their labels the name train_labels"
        )
    splits = [name for name in SPLITS if f"{name}_images" in arrays]
    for name in splits:
        _check_shape(tuple(arrays[f"{name}_images"].shape), f"{root}: {name}_images")
    labels = [_labels_of(arrays, name, root) for name in splits]
    places, classes = classes_of(labels, str(root))
    made = {
        name: source(f"{name}_images", arrays[f"{name}_images"], of)
        for name, of in zip(splits, places, strict=True)
    }
    found = {name: arrays.get(f"{name}_groups") for name in splits}
    if any(of is not None for of in found.values()):
        given = {
            name: None if of is None else whole_array(of, f"{root}: {name}_groups")
            for name, of in found.items()
        }
        names = {
            name: names_in_array(of, len(made[name]), f"{root}: {name}_groups")
            for name, of in given.items()
        }
        group_images(str(root), made, names)
    return Raw(**made, classes=classes)


def whole_array(array: Any, what: str) -> np.ndarray[Any, Any]:
    """All of an array, from a library that opens it without reading it.

    Raises:
        UserError: a part of it is damaged.
    """
    try:
        return np.asarray(array[...])
    except Exception as error:  # libraries raise anything for broken files
        raise UserError(f"{what} cannot be read ({in_one_line(error)}): save it again") from error


def _check_shape(shape: tuple[int, ...], what: str) -> None:
    if len(shape) not in (3, 4):
        raise UserError(f"{what} is {[*shape]}, but must be [N, H, W] or [N, H, W, C]")
    if len(shape) == 4 and is_channels_first(shape):
        raise UserError(
            f"{what} is {[*shape]}, which looks like [N, C, H, W]: save it as [N, H, W, C], as "
            "by numpy.moveaxis(images, 1, -1)"
        )
    if min(shape[1:3]) < MIN_SIDE:
        raise UserError(
            f"{what} is {[*shape]}, too small to crop: give images of at least {MIN_SIDE} x "
            f"{MIN_SIDE} pixels"
        )


def in_memory(images: np.ndarray[Any, Any], labels: Tensor, name: str) -> ArrayImages:
    """Images in one tensor: 8 bits, or numbers.

    Args:
        images: `[N, H, W]` or `[N, H, W, C]`.
        labels: `int64 [N]`.
        name: of the images, for errors.

    Raises:
        UserError: numbers that are not finite or cannot be kept.
    """
    try:
        pixels = as_tensor(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))
    except ValueError as error:
        raise UserError(f"{name} cannot be used: {error}{_first_not_finite(images)}") from error
    kind = ArrayImages if pixels.dtype == torch.uint8 else MemoryNumbers
    return kind(pixels, labels)


def _first_not_finite(images: np.ndarray[Any, Any]) -> str:
    """The first image with NaN or infinity and the remedy, as the end of a sentence; or empty."""
    if images.dtype.kind != "f":
        return ""
    for place, image in enumerate(images):
        if not np.isfinite(image).all():
            return (
                f" (first in image {place}): replace these numbers, or leave such images out with "
                "--data.on_bad_image skip"
            )
    return ""


def _labels_of(arrays: Mapping[str, Any], split: str, root: Path) -> np.ndarray[Any, Any]:
    """`[N]`, whole numbers of the file's own type."""
    count = int(arrays[f"{split}_images"].shape[0])
    given = arrays.get(f"{split}_labels")
    name = f"{root}: {split}_labels"
    labels = np.full(count, UNLABELLED) if given is None else whole_array(given, name)
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{name} is {labels.dtype} {[*labels.shape]}, but must be whole "
            f"numbers [{count}] or [{count}, 1], one for each image"
        )
    return labels.reshape(count)
