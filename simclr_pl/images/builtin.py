"""Readers of data sets: scikit-learn, torchvision, IDX files, NumPy files."""

import gzip
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages, Source
from simclr_pl.core.errors import UserError
from simclr_pl.images.splits import holdout

FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four gzipped files."""

FASHION_FILES = (
    "the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into {root}/FashionMNIST/raw, "
    "or install Debian's package dataset-fashion-mnist"
)


class Raw(NamedTuple):
    """What a reader finds: `Splits`, before a validation split is held out.

    Attributes:
        train: all of train, with its labels.
        test: the test split, or `None`.
        classes: names in the order of labels; empty where nothing is labelled.
        val: the data set's own validation split, or `None`.
    """

    train: Source
    test: Source | None
    classes: tuple[str, ...]
    val: Source | None = None


class Entry(NamedTuple):
    """A row of the table of data sets.

    Attributes:
        read: reads the splits below a root, downloaded before.
        fetch: downloads through torchvision, or `None`: is given the root, where an archive may
            be, and the folder to put everything into.
        there: whether a root has all files, whole as far as that can be known.
        files: which files to put where, for people without internet.
    """

    read: Callable[[Path], Raw]
    fetch: Callable[[Path, Path], None] | None = None
    there: Callable[[Path], bool] = Path.exists
    files: str = ""


def first_line(error: BaseException) -> str:
    """An exception's first line, to be quoted in a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")


def _from_torchvision(splits: list[Any], classes: list[str]) -> Raw:
    """In-memory torchvision sets (train, test, and perhaps unlabelled ones for train)."""
    sources = []
    for data in splits:
        images = torch.as_tensor(data.data)
        if images.dim() == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = data.labels if hasattr(data, "labels") else data.targets
        sources.append((images.contiguous(), torch.as_tensor(labels, dtype=torch.int64)))
    train, test, *more = sources
    images = torch.cat([train[0], *(m[0] for m in more)])
    labels = torch.cat([train[1], *(torch.full_like(m[1], UNLABELLED) for m in more)])
    return Raw(ArrayImages(images, labels), ArrayImages(*test), tuple(classes))


def torchvision_set(name: str, splits: list[dict[str, Any]], archive: str) -> Entry:
    """The entry of a torchvision class, with its constructor's arguments for each split."""

    def make(root: Path, download: bool) -> list[Any]:
        from torchvision import datasets

        with warnings.catch_warnings():  # numpy's, about torchvision's old pickles
            warnings.simplefilter("ignore")
            return [getattr(datasets, name)(root, download=download, **s) for s in splits]

    def read(root: Path) -> Raw:
        try:
            data = make(root, False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{name.lower()} is not in {root}, or not whole: put {archive} into {root}"
            ) from error
        return _from_torchvision(data, data[0].classes)

    def there(root: Path) -> bool:
        try:
            return bool(make(root, False))
        except (OSError, RuntimeError):
            return False

    def fetch(root: Path, into: Path) -> None:
        if (root / archive).is_file():  # put there by hand, or before unpacking was broken off
            (into / archive).symlink_to((root / archive).absolute())
        make(into, True)

    return Entry(read, fetch, there, f"{archive} into {{root}}")


def read_digits(root: Path) -> Raw:
    """scikit-learn's 1,797 handwritten digits (UCI optdigits' test part), a fifth of them test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target).long()
    # The holdout rule twice over, with a seed of its own, makes a class-balanced fifth.
    first = holdout(labels, seed=1797)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[first] = False
    second = rest.nonzero()[:, 0][holdout(labels[rest], seed=1798)]
    rest[second] = False
    everything = ArrayImages(images, labels)
    test = everything.select(torch.cat([first, second]).sort().values)
    train = everything.select(rest.nonzero()[:, 0])
    return Raw(train, test, tuple("0123456789"))


_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _fashion_folder(root: Path) -> Path | None:
    names = [f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
    for folder in (root / "FashionMNIST" / "raw", FASHION_DEBIAN):
        if all((folder / n).is_file() or (folder / f"{n}.gz").is_file() for n in names):
            return folder
    return None


def read_fashion(root: Path) -> Raw:
    """Fashion-MNIST's IDX files, below `root` or where Debian's package puts them."""
    folder = _fashion_folder(root)
    if folder is None:
        raise UserError(f"Fashion-MNIST is not in {root}: put {FASHION_FILES.format(root=root)}")

    def split(prefix: str) -> ArrayImages:
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
        return ArrayImages(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())

    return Raw(split("train"), split("t10k"), _FASHION_CLASSES)


def fashion_is_there(root: Path) -> bool:
    """Whether Fashion-MNIST is on this machine."""
    return _fashion_folder(root) is not None


def fetch_fashion(root: Path, into: Path) -> None:
    """Downloads Fashion-MNIST through torchvision."""
    from torchvision.datasets import FashionMNIST

    FashionMNIST(into, download=True)


def _read_idx(path: Path, dims: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An IDX file of bytes (LeCun's MNIST format), gzipped or not."""
    try:
        if path.is_file():
            raw = path.read_bytes()
        else:
            path = path.with_name(path.name + ".gz")
            raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", dims, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} is truncated or not an IDX file ({first_line(error)}): copy it again"
        ) from error


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
