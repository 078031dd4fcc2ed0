"""Data sets of the user's own: a class path or an object becomes splits, as a table's name does.

A split is a map-style `torch.utils.data.Dataset` of images, or of (image, label, ...), or a pair of
arrays. A callable may return several splits.
"""

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import MAX_PIXELS, ArrayImages, Source, Splits, Statistics, counted
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.core.lookup import Choice, accepted, construct, lookup, name_of
from simclr_pl.core.views.parameters import MIN_SIDE
from simclr_pl.images.files.decode import BadImageError, Box, check_size, cut_box
from simclr_pl.images.files.pixels import to_rgb
from simclr_pl.images.readers.reader import SPLITS, Raw, classes_of, say_once
from simclr_pl.images.workers.crops import PHOTOGRAPHS
from simclr_pl.images.workers.images import WorkerImages

OPTION = "data.dataset"

MEMORY_BYTES = 2 * 2**30
"""Images of one size are read once and kept up to this many bytes of pixels."""

_WANTED = (
    "an image must be a uint8 tensor [C, H, W] with pixels from 0 to 255, or a Pillow image "
    "(leave out ToTensor and Normalize: views and statistics are made here)"
)


def is_own(given: Any) -> bool:
    """Whether `data.dataset` is an object or a class path: names of the table have no dot."""
    return not isinstance(given, str) or "." in given or ":" in given


def read_own(given: Any, root: Path) -> Raw:
    """Reads the splits of a user's own data set.

    Args:
        given: a class path, a mapping of `class_path` and `init_args`, or an object.
        root: argument of a class or function whose signature names `root`.

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
    read = {part: _source(of, f"{name}'s {part} split") for part, of in given_splits.items()}
    classes = made.get("classes")
    if classes is None:
        classes = getattr(given_splits["train"], "classes", None)
    if isinstance(classes, Sequence) and not isinstance(classes, str) and len(classes):
        return Raw(**read, classes=tuple(map(str, classes)))
    labels = [source.labels.numpy(force=True) for source in read.values()]
    places, names = classes_of(labels, f"{OPTION}: {name}")
    placed = [source.relabel(of) for source, of in zip(read.values(), places, strict=True)]
    return Raw(**dict(zip(read, placed, strict=True)), classes=names)


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


# One split ----------------------------------------------------------------------------------------


def _source(given: Any, what: str) -> Source:
    """The images of one split."""
    if isinstance(given, ArrayImages | WorkerImages):
        return given
    if isinstance(given, IterableDataset):
        raise UserError(
            f"{OPTION}: {what} is an IterableDataset, which has no images by number: epochs, "
            "resumes and ranks need a map-style Dataset (__len__ and __getitem__)"
        )
    pair = isinstance(given, tuple | list) and len(given) == 2
    images, labels = given if pair else (given, None)
    if isinstance(images, Tensor | np.ndarray) and (images.ndim == 4 or not pair):
        return _arrays(images, labels, what)
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise UserError(
            f"{OPTION}: {what} is a {type(given).__name__}, but must be a torch.utils.data.Dataset "
            "with __len__ and __getitem__, or a pair (images uint8 [N, C, H, W], labels)"
        )
    if not len(given):
        raise UserError(f"{OPTION}: {what} is empty")
    return _of_items(DatasetImages(given, what))


def _arrays(images: Any, labels: Any, what: str) -> ArrayImages:
    pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        raise UserError(
            f"{OPTION}: images of {what} are {pixels.dtype} {[*pixels.shape]}, but must be uint8 "
            "[N, C, H, W] with pixels from 0 to 255"
        )
    known = torch.full((len(pixels),), UNLABELLED) if labels is None else _labels(labels, what)
    return ArrayImages(pixels.contiguous(), known)


def _labels(given: Any, what: str) -> Tensor:
    """Labels of a split, `int64 [N]`."""
    whole = torch.as_tensor(np.asarray(given))
    if whole.dim() != 1 or whole.is_floating_point() or whole.is_complex():
        raise UserError(
            f"{OPTION}: labels of {what} are {whole.dtype} {[*whole.shape]}, but must be whole "
            "numbers [N], one for each image"
        )
    return whole.long()


class DatasetImages(WorkerImages):
    """Items of a map-style Dataset, unlabelled at first.

    Args:
        dataset: a Dataset of images, or of (image, label, ...).
        what: the data set's name in errors.
    """

    def __init__(self, dataset: Any, what: str) -> None:
        super().__init__(torch.full((len(dataset),), UNLABELLED))
        self.dataset, self.what = dataset, what
        self.places = torch.arange(len(dataset))
        self.channels = 0  # unknown
        self.channels = len(self.item(0)[0])

    def name(self, place: int) -> str:
        """The item's name in errors."""
        return f"item {int(self.places[place])} of {self.what}"

    def content(self, place: int) -> bytes:
        """An item's pixels as bytes."""
        return self.item(place)[0].numpy().tobytes()

    def statistics(self) -> Statistics:
        """Photographs' for 3 channels; else counted in up to 100 evenly spread images."""
        if self.channels == 3:
            return PHOTOGRAPHS
        places = torch.linspace(0, len(self) - 1, min(100, len(self))).long().tolist()
        pixels = [self.item(place)[0].flatten(1) for place in places]
        return counted(torch.cat(pixels, 1).unbind(0))

    def open(self, place: int, max_pixels: int = MAX_PIXELS) -> "DecodedImage":
        """Reads an item, from which crops are cut.

        Raises:
            BadImageError: reading fails, or the item is no image, has other channels than the first
                item, or is too small or too large.
        """
        (pixels, _), name = self.item(place), self.name(place)
        if len(pixels) != self.channels:
            why = f"{len(pixels)} channels, but the first item has {self.channels}"
            raise BadImageError(f"{OPTION}: {name} has {why}: give all images as many", why)
        check_size(name, pixels.shape[2], pixels.shape[1], max_pixels)
        return DecodedImage(pixels)

    def keep(self, index: Tensor) -> None:
        """Keeps the places at `index` alone."""
        self.places = self.places[index]

    def item(self, place: int) -> tuple[Tensor, Any]:
        """An item's pixels, `uint8 [C, H, W]`, and its label as it was given, or `None`.

        Raises:
            BadImageError: reading fails, or the item is no image.
        """
        name = self.name(place)
        try:
            item = self.dataset[int(self.places[place])]
        except UserError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{in_one_line(error)} at {last.filename}:{last.lineno}"
            raise BadImageError(f"{OPTION}: {name} cannot be read ({why})", why) from error
        several = isinstance(item, tuple | list)
        if several and not len(item):
            raise BadImageError(f"{OPTION}: {name} is empty, but {_WANTED}")
        image = item[0] if several else item
        label = item[1] if several and len(item) > 1 else None
        return _pixels(image, self.channels, name), label


class DecodedImage:
    """Pixels in memory, from which crops are cut as from a file; see `EncodedImage`."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[1:]

    def crops(self, groups: Sequence[Sequence[Box]], size: int, out: Tensor) -> None:
        """Cuts boxes and resizes them: `uint8 [K, C, S, S]` for the K boxes of all groups."""
        planes = [Image.fromarray(plane) for plane in self.pixels.numpy()]
        for place, box in zip(out.numpy(), (box for boxes in groups for box in boxes), strict=True):
            for channel, plane in zip(place, planes, strict=True):
                channel[:] = np.asarray(cut_box(plane, box, 1, size, (0, 0)))


def _pixels(image: Any, channels: int, name: str) -> Tensor:
    """`uint8 [C, H, W]`; a gray Pillow image is RGB unless `channels` is 1, or 0 for unknown."""
    if isinstance(image, Image.Image):
        try:
            gray = image.mode in ("1", "L") and channels in (0, 1)
            array = np.asarray(image.convert("L") if gray else to_rgb(image))
        except (OSError, ValueError) as error:
            raise BadImageError(f"{OPTION}: {name} cannot be read ({error})", str(error)) from error
        return torch.from_numpy(array[None] if gray else array.transpose(2, 0, 1).copy())
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3:
        kind = type(image).__name__
        found = f"{image.dtype} {[*image.shape]}" if isinstance(image, Tensor) else f"a {kind}"
        raise BadImageError(f"{OPTION}: {name} is {found}, but {_WANTED}", f"{found}, no image")
    return image


def _of_items(items: DatasetImages) -> Source:
    """Images in memory where all have one size and fit; else images that workers read."""
    count, (first, _) = len(items), items.item(0)
    labels, found = _declared(items.dataset, count, items.what), list[int]()
    kept = None
    if first.numel() * count <= MEMORY_BYTES and min(first.shape[1:]) >= MIN_SIDE:
        kept = torch.empty(count, *first.shape, dtype=torch.uint8)
        say_once(f"{items.what}: {count} images are read once and kept in memory")
    quiet = None if sys.stderr.isatty() else True
    for place in tqdm(range(count), f"reading {items.what}", leave=False, delay=2, disable=quiet):
        if kept is None and labels is not None:
            break
        pixels, label = items.item(place)
        if kept is not None and pixels.shape == first.shape:
            kept[place] = pixels
        elif kept is not None:
            say_once(f"{items.what}: images differ in size, workers read them in each epoch")
            kept = None
        if labels is None:
            found.append(_label(label, items.name(place)))
    labels = torch.tensor(found) if labels is None else labels
    return items.relabel(labels) if kept is None else ArrayImages(kept, labels)


def _declared(dataset: Any, count: int, what: str) -> Tensor | None:
    """The labels that a Dataset has as `targets` or `labels`, where there is one for each item."""
    for name in ("targets", "labels"):
        given: Any = getattr(dataset, name, None)
        if hasattr(given, "__len__") and len(given) == count:
            return _labels(given, what)
    return None


def _label(given: Any, name: str) -> int:
    """An item's label; `UNLABELLED` for `None`."""
    if given is None:
        return UNLABELLED
    number = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    if not isinstance(number, int | np.integer):
        raise UserError(
            f"{OPTION}: the label of {name} is {given!r}, but must be a whole number (None or "
            f"{UNLABELLED} where it is unknown)"
        )
    return int(number)
