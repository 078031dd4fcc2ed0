"""Data sets of the user's own: a class path or an object becomes splits, as a table's name does.

A split is a map-style `torch.utils.data.Dataset` of images, or of (image, label, ...), or arrays:
images, labels and perhaps groups. A callable may return several splits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages, Source, Splits
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Choice, accepted, construct, lookup, name_of
from simclr_pl.images.groups import group_images, names_in_array
from simclr_pl.images.numbers.sources import MemoryNumbers, check_finite
from simclr_pl.images.readers.items import DatasetImages, NumberItems, of_items, whole_labels
from simclr_pl.images.readers.reader import OPTION, SHARDS, SPLITS, Raw, in_library, with_classes
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import WorkerImages


def is_own(given: Any) -> bool:
    """Whether `data.dataset` is an object or a class path: names of the table have no dot."""
    is_path = not isinstance(given, str) or "." in given or ":" in given
    return is_path and in_library(given) is None and name_of(given) != SHARDS


def read_own(given: Any, root: Path, reading: Reading) -> Raw:
    """Reads the splits of a user's own data set.

    Args:
        given: a class path, a mapping of `class_path` and `init_args`, or an object.
        root: argument of a class or function whose signature names `root`.
        reading: how images are read.

    Raises:
        UserError: the object, or an item of it, is of no kind that is read here.
    """
    made = _made(given, root)
    name = name_of(given)
    if isinstance(made, Splits | Raw):
        made = {part: getattr(made, part) for part in (*SPLITS, "classes")}
    if not isinstance(made, Mapping):
        made = {"train": made}
    unknown = [str(key) for key in made if key not in (*SPLITS, "classes")]
    if unknown or made.get("train") is None:
        found = f"has '{unknown[0]}'" if unknown else "has no 'train'"
        raise UserError(
            f"{OPTION}: {name} {found}: give a mapping of train, and if there are any val, test "
            "and classes"
        )
    given_splits = {part: made[part] for part in SPLITS if made.get(part) is not None}
    what = f"{name}'s {{}} split"
    read = {part: _source(of, what.format(part), reading) for part, of in given_splits.items()}
    if any(map(_is_grouped, given_splits.values())):
        groups = {
            part: names_in_array(
                of[2] if _is_grouped(of) else None,
                len(read[part]),
                f"{OPTION}: groups of {what.format(part)}",
            )
            for part, of in given_splits.items()
        }
        group_images(f"{OPTION}: {name}", read, groups)
    classes = made.get("classes")
    if classes is None:
        classes = getattr(given_splits["train"], "classes", None)
    return with_classes(read, classes, f"{OPTION}: {name}")


def _made(given: Any, root: Path) -> Any:
    """The object that `data.dataset` names; a class or function is called."""
    if isinstance(given, str) or (isinstance(given, Mapping) and "class_path" in given):
        choice = lookup(given, {}, OPTION)
        if not callable(choice.target):
            return choice.target
    elif callable(given) and not isinstance(given, Dataset):
        choice = Choice(name_of(given), given, {})
    else:
        return given
    offered = accepted(choice.target, {"root": str(root)}, choice.args)
    return construct(choice, OPTION, **offered)


def _is_grouped(given: Any) -> bool:
    """Whether a split is (images, labels, groups), and no list of three items."""
    return isinstance(given, tuple | list) and len(given) == 3 and getattr(given[0], "ndim", 0) == 4


# One split ----------------------------------------------------------------------------------------


def _source(given: Any, what: str, reading: Reading) -> Source:
    """The images of one split."""
    if isinstance(given, ArrayImages | WorkerImages):
        return given
    if isinstance(given, IterableDataset):
        raise UserError(
            f"{OPTION}: {what} is an IterableDataset, which has no images by number: epochs, "
            "resumes and ranks need a map-style Dataset (__len__ and __getitem__)"
        )
    pair = _is_grouped(given) or (isinstance(given, tuple | list) and len(given) == 2)
    images, labels = given[:2] if pair else (given, None)
    if isinstance(images, Tensor | np.ndarray) and (images.ndim == 4 or not pair):
        return _arrays(images, labels, what)
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise UserError(
            f"{OPTION}: {what} is a {type(given).__name__}, but must be a torch.utils.data.Dataset "
            "with __len__ and __getitem__, or arrays (images uint8 [N, C, H, W], labels)"
        )
    if not len(given):
        raise UserError(f"{OPTION}: {what} is empty")
    kind = NumberItems if reading.numbers else DatasetImages
    return of_items(kind(given, what, reading))


def _arrays(images: Any, labels: Any, what: str) -> ArrayImages:
    pixels = torch.as_tensor(images)
    if pixels.dtype not in MemoryNumbers.dtypes or pixels.dim() != 4:
        raise UserError(
            f"{OPTION}: images of {what} are {pixels.dtype} {[*pixels.shape]}, but must be uint8 "
            "[N, C, H, W] with pixels from 0 to 255 (or uint16 or float32 with --data.range)"
        )
    known = torch.full((len(pixels),), UNLABELLED) if labels is None else whole_labels(labels, what)
    if pixels.dtype == torch.uint8:
        return ArrayImages(pixels.contiguous(), known)
    check_finite(pixels, f"{OPTION}: {what}")
    return MemoryNumbers(pixels.contiguous(), known)
