"""Any classification set of `torchvision.datasets`, by the name of its class.

Which splits a set has is read off its class: from the argument `train`, or from the values that the
argument `split` takes.
"""

import difflib
import inspect
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import Labels
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.images.readers.checksums import checked_once
from simclr_pl.images.readers.encoded import FileItems
from simclr_pl.images.readers.items import DatasetImages, label_of, of_items
from simclr_pl.images.readers.reader import (
    OPTION,
    Entry,
    InLibrary,
    Raw,
    first_line,
    say_once,
    with_classes,
)
from simclr_pl.images.workers.crops import Reading

_NO_CLASSES = {
    "boxes of objects": ("CocoDetection", "Kitti", "VOCDetection", "WIDERFace"),
    "masks": ("Cityscapes", "SBDataset", "VOCSegmentation"),
    "texts": ("CocoCaptions", "Flickr30k", "Flickr8k", "SBU"),
    "videos": ("HMDB51", "Kinetics", "MovingMNIST", "UCF101"),
    "pairs of images": ("LFWPairs", "PhotoTour"),
    "files of any folder": ("DatasetFolder", "ImageFolder", "LSUNClass", "VisionDataset"),
}
"""What sets that are no classification sets hold."""

_NO_CLASSES_BASES = {"FlowDataset": "optical flow", "StereoMatchingDataset": "pairs of images"}

_SPLITS: dict[str, dict[str, dict[str, Any]]] = {
    "CelebA": {s: {"split": "valid" if s == "val" else s} for s in ("train", "val", "test")},
    "INaturalist": {"train": {"version": "2021_train"}, "val": {"version": "2021_valid"}},
    "LSUN": {"train": {"classes": "train"}, "val": {"classes": "val"}},
}
"""Arguments for the splits of classes that say which ones they have in no other way."""

_CALLED = {
    "train": ("train+unlabeled", "train", "train-standard", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}
"""Values of the argument `split`, the best first."""

_OTHER_LABELS = {"binary-category": ("_bin_labels", "bin_classes")}
"""Attributes with the labels and the classes of arguments `target_...`: of OxfordIIITPet's."""

Splits = dict[str, dict[str, Any]]
"""A class's arguments for each split."""


def classification_set(given: InLibrary, labels: Labels, reading: Reading) -> Entry:
    """The row of a class of `torchvision.datasets`.

    Args:
        given: the class's name; `init_args` are arguments of the class.
        labels: whether labels are wanted.
        reading: how images are read.

    Raises:
        UserError: no such class, one without a class for each image, or an argument that the class
            does not take.
    """
    found = _Set(given, labels, reading)
    if "download" in found.known:
        return Entry(found.read, found.fetch, found.there, found.files)
    return Entry(found.read, prepare=found.there)  # ImageNet unpacks its archives


class _Set:
    """A class of `torchvision.datasets`; see `classification_set`."""

    def __init__(self, given: InLibrary, labels: Labels, reading: Reading) -> None:
        self.given, self.labels, self.reading = given, labels, reading
        self.kind = checked_once(_class_of(given))
        self.known = _parameters(self.kind)
        for key in given.args.keys() - self.known:
            takes = f"takes no argument '{key}', but {', '.join(self.known)}"
            raise UserError(f"{OPTION}: {given} {takes}")
        needed = [key for key, of in self.known.items() if of.default is of.empty]
        for key in needed:
            if key != "root" and key not in given.args:
                needs = f"needs the argument {key}: give it as --{OPTION}.{key}"
                raise UserError(f"{OPTION}: {given} {needs}")
        self.files = f"its files there as torchvision.datasets.{given.name} wants them"

    def make(self, root: Path, *, download: bool) -> dict[str, Any]:
        """An object of the class for each split; each class raises errors of its own."""
        fixed: dict[str, Any] = {"root": str(root), "download": download}
        fixed["loader"] = str  # a path stays one: files are read as those of a folder are
        fixed = {key: value for key, value in fixed.items() if key in self.known}
        splits = _splits(self.given, self.kind, self.known)
        with warnings.catch_warnings():  # NumPy warns of torchvision's old pickles
            warnings.simplefilter("ignore")
            return {
                part: self.kind(**(fixed | of | self.given.args)) for part, of in splits.items()
            }

    def read(self, root: Path) -> Raw:
        """The splits, from files that are there."""
        try:
            made = self.make(root, download=False)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.given} is not in {root}, or not whole ({first_line(error)}): put "
                f"{self.files}"
            ) from error
        # A class whose default is no loader has gray images (Omniglot), or may have.
        may_be_gray = "loader" in self.known and self.known["loader"].default is None
        channels = None if may_be_gray else 3
        return _read(made, self.given, self.labels, self.reading, channels, self._target())

    def _target(self) -> str | None:
        """The labels that arguments ask for; `None` for those that the class has by default."""
        for key, value in self.given.args.items():
            default = self.known[key].default
            if key.startswith("target_") and value not in (default, [default], (default,)):
                return ",".join(value) if isinstance(value, list | tuple) else str(value)
        return None

    def there(self, root: Path) -> bool:
        """Whether the files of all splits are there, as far as the class looks."""
        try:
            return bool(self.make(root, download=False))
        except UserError:
            raise
        except Exception:
            return False

    def fetch(self, _: Path, into: Path) -> None:
        """Downloads all splits."""
        try:
            self.make(into, download=True)
        except (UserError, OSError, RuntimeError):
            raise
        except Exception as error:
            raise RuntimeError(in_one_line(error)) from error


def _class_of(given: InLibrary) -> Any:
    from torchvision import datasets

    classes = {name: getattr(datasets, name) for name in datasets.__all__}
    classes = {name: of for name, of in classes.items() if inspect.isclass(of)}
    held = {name: what for what, names in _NO_CLASSES.items() for name in names}
    for name, of in classes.items():
        bases = {base.__name__ for base in of.__mro__} & _NO_CLASSES_BASES.keys()
        for base in bases:
            held[name] = _NO_CLASSES_BASES[base]
    usable = [name for name in classes if name not in held]
    if given.name in usable:
        return classes[given.name]
    alike = {name.casefold(): name for name in usable}
    near = difflib.get_close_matches(given.name.casefold(), alike, 3, cutoff=0.4)
    hint = f"; near names: {', '.join(alike[name] for name in near)}" if near else ""
    if given.name in held:
        raise UserError(
            f"{OPTION}: {given} holds {held[given.name]}, but a set of images with a class each is "
            f"needed{hint}"
        )
    raise UserError(
        f"{OPTION}: torchvision.datasets has no '{given.name}', but {', '.join(usable)}{hint}"
    )


def _parameters(found: Any) -> dict[str, inspect.Parameter]:
    """A constructor's arguments, and its base's where it hands `**kwargs` on."""
    known: dict[str, inspect.Parameter] = {}
    for base in found.__mro__:
        if "__init__" not in vars(base):
            continue
        own = inspect.signature(base.__init__).parameters
        rest = [p for p in own.values() if p.kind == p.VAR_KEYWORD]
        known = {k: p for k, p in own.items() if k != "self" and p not in rest} | known
        if not rest:
            break
    return known


def _splits(given: InLibrary, found: Any, known: dict[str, inspect.Parameter]) -> Splits:
    """A class's arguments for each split that is used; a line names the others."""
    if "train" in known and not {"train", "what"} & given.args.keys():  # QMNIST's own splits
        return {"train": {"train": True}, "test": {"train": False}}
    if given.name in _SPLITS:
        splits = _SPLITS[given.name]
        return {"train": {}} if set(splits["train"]) & set(given.args) else splits
    if "split" not in known or "split" in given.args:
        return {"train": {}}
    values = _values_of_split(found, given)
    chosen = {part: next((n for n in names if n in values), "") for part, names in _CALLED.items()}
    used = {part for value in chosen.values() for part in [value, *value.split("+")]}
    left = [value for value in values if value not in used | {"trainval", "all"}]
    if left:
        say_once(f"{given}: splits that are left out: {', '.join(left)}")
    if not chosen["train"]:
        raise UserError(
            f"{OPTION}: {given} has no split to train on, but {', '.join(values)}: give one as "
            "--data.dataset.split NAME"
        )
    return {part: {"split": value} for part, value in chosen.items() if value}


def _values_of_split(found: Any, given: InLibrary) -> list[str]:
    """The values that the argument `split` takes: torchvision names them to whoever gives others.

    Raises:
        UserError: the class needs a package that is not there.
    """
    with tempfile.TemporaryDirectory() as empty:
        try:
            found(empty, split="?", **given.args)
        except ValueError as error:
            return re.findall(r"'([^']+)'", str(error).partition("Valid values are")[2])
        except Exception as error:
            raise UserError(f"{OPTION}: {given} cannot be read ({first_line(error)})") from error
    return []


# Images and labels --------------------------------------------------------------------------------


def _read(
    made: dict[str, Any],
    given: InLibrary,
    labels: Labels,
    reading: Reading,
    channels: int | None,
    target: str | None,
) -> Raw:
    """The sources of datasets of files, of so many channels, or of Pillow images."""
    sources = {}
    for part, dataset in made.items():
        items = _items_of(dataset, f"{given} {part}", reading)
        if isinstance(items, FileItems):
            looked = items.look()
            channels = items.channels = channels or looked
        none = torch.full((len(items),), UNLABELLED)
        known = none if labels == "none" else _labels_of(dataset, items, target)
        sources[part] = of_items(items, known, declared=False)
    train, (_, other) = made["train"], _OTHER_LABELS.get(target or "", ("", ""))
    names = getattr(train, other, None)
    if target is None:
        names = getattr(train, "classes", getattr(train, "categories", None))
    return with_classes(sources, names, f"{OPTION}: {given}")


def _items_of(dataset: Any, what: str, reading: Reading) -> DatasetImages:
    """The items of a split: paths of files, or Pillow images."""
    if not len(dataset):
        raise UserError(f"{OPTION}: {what} is empty")
    if getattr(dataset, "loader", getattr(dataset, "_loader", None)) is str:
        return FileItems(dataset, what, reading)
    return DatasetImages(dataset, what, reading)


def _labels_of(dataset: Any, items: DatasetImages, target: str | None) -> Tensor | None:
    """Labels `int64 [N]` that a class keeps in memory; `None` where images have to be read."""
    pairs_kept = ["samples", "_samples", "imgs", "_flat_character_images"]
    kept = ["targets", "labels", "_labels", "y"]
    if target is not None:  # these may be other labels than those of the items
        kept, pairs_kept = list(_OTHER_LABELS.get(target, ())[:1]), []
    for name in kept:
        if (found := _whole(getattr(dataset, name, None), len(dataset))) is not None:
            return found
    for name in pairs_kept:
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
            found = _whole([label for _, label in pairs], len(dataset))
            if found is not None:
                return found
    if isinstance(items, FileItems):
        given = (dataset[place][1] for place in range(len(items)))
        return torch.tensor([label_of(label, items.name(i)) for i, label in enumerate(given)])
    return None


def _whole(labels: Any, count: int) -> Tensor | None:
    """Whole numbers, one for each of so many images, as a tensor; `None` for anything else."""
    if not hasattr(labels, "__len__") or len(labels) != count:
        return None
    if isinstance(labels, list):
        labels = [UNLABELLED if label is None else label for label in labels]
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = found.dim() == 1 and not found.is_floating_point() and not found.is_complex()
    return found.long() if whole else None
