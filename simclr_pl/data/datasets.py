"""The table of data sets: name -> splits, classes, and where the files are.

Splits: `train` is what pretraining sees, with the labels a probe may learn from; `val` is held out
from train's *labels* (10 %, class-balanced, the same for everybody with the same `split_seed`) unless
the data set brings one; `test` is for the end.
"""

import difflib
import gzip
import socket
import warnings
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr_pl.batch import UNLABELLED
from simclr_pl.data.sources import ArrayImages, ImageFiles
from simclr_pl.errors import UserError
from simclr_pl.randomness import epoch_order

HOLDOUT = 0.1
"""Share of each class of train whose labels are kept for validation."""

FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four gzipped files."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})

AnySource = ArrayImages | ImageFiles


class Splits(NamedTuple):
    """A data set's images.

    Attributes:
        train: what pretraining sees; labels of the validation holdout are `UNLABELLED`.
        val: for callbacks and every choice.
        test: for one score at the end, or `None`.
        classes: names in the order of labels; empty where nothing is labelled.
    """

    train: AnySource
    val: AnySource
    test: AnySource | None
    classes: tuple[str, ...]


class _Raw(NamedTuple):
    train: AnySource
    test: AnySource | None
    classes: tuple[str, ...]
    val: AnySource | None = None


class _Entry(NamedTuple):
    """A row of the table.

    Attributes:
        read: reads the splits below a root, downloaded before.
        fetch: downloads through torchvision where files are missing, or `None`.
        files: which files to put where, for people without internet.
    """

    read: Callable[[Path], _Raw]
    fetch: Callable[[Path], None] | None = None
    files: str = ""


def prepare(name: str, root: str | Path) -> None:
    """Downloads a data set if it is one that downloads and its files are not there.

    Raises:
        UserError: an unknown name, or no internet: the sentence says which files to put where.
    """
    entry, root = _entry(name), Path(root)
    if entry.fetch is None:
        return
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        entry.fetch(root)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        raise UserError(
            f"{name} is not in {root} and could not be downloaded ({_first_line(error)}): "
            f"put {entry.files.format(root=root)}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def load(name: str, root: str | Path, split_seed: int = 0) -> Splits:
    """Reads a data set whose files are there (see `prepare`).

    Args:
        name: a key of `DATASETS`.
        root: folder of the data; for `folder` the images' own, for `npz` the file.
        split_seed: of the validation holdout, where the data set brings none.

    Raises:
        UserError: an unknown name; files that are missing, empty or broken; labels out of range.
    """
    raw = _entry(name).read(Path(root))
    for split, source in (("train", raw.train), ("val", raw.val), ("test", raw.test)):
        if source is not None:
            _check_labels(source.labels, len(raw.classes), f"{name}'s {split} split")
    if raw.val is not None:
        return Splits(raw.train, raw.val, raw.test, raw.classes)
    held = holdout(raw.train.labels, split_seed)
    labels = raw.train.labels.clone()
    labels[held] = UNLABELLED
    return Splits(raw.train.relabel(labels), raw.train.select(held), raw.test, raw.classes)


def holdout(labels: Tensor, seed: int) -> Tensor:
    """Indices of the validation holdout: `HOLDOUT` of each class, at least one, in rising order.

    Where nothing is labelled it is `HOLDOUT` of all images; where some are, of those.

    Args:
        labels: `int64 [N]`.
        seed: of the choice.
    """
    order = epoch_order(seed, 0, len(labels))
    shuffled = labels[order]
    classes = shuffled.unique()
    known = classes[classes != UNLABELLED]
    chosen = [
        members[: max(1, round(len(members) * HOLDOUT))]
        for label in (known if len(known) else classes)
        if len(members := order[shuffled == label])
    ]
    return torch.cat(chosen).sort().values


def statistics(source: AnySource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on a scale of 0 to 1.

    In-memory sets are counted (10,000 images, evenly spread, where there are more); for image files
    the usual ImageNet values serve.
    """
    if isinstance(source, ImageFiles):
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    sample = source.images[:: max(1, len(source) // 10_000)]
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in sample.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        share = counts / counts.sum()
        centre = (share * levels).sum()
        mean.append(round(float(centre), 4))
        std.append(round(max(float((share * (levels - centre) ** 2).sum().sqrt()), 1e-4), 4))
    return tuple(mean), tuple(std)


def _entry(name: str) -> _Entry:
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown data set '{name}': there are {', '.join(DATASETS)}{hint}")
    return DATASETS[name]


def _check_labels(labels: Tensor, classes: int, what: str) -> None:
    if not len(labels):
        raise UserError(f"{what} is empty")
    low, high = int(labels.min()), int(labels.max())
    if low < UNLABELLED or high >= classes:
        raise UserError(
            f"{what} has labels from {low} to {high}, but they must be from 0 to {classes - 1} "
            f"(or {UNLABELLED} for unlabelled)"
        )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _from_torchvision(splits: list[Any], classes: list[str]) -> _Raw:
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
    return _Raw(ArrayImages(images, labels), ArrayImages(*test), tuple(classes))


def _torchvision(name: str, splits: list[dict[str, Any]], archive: str) -> _Entry:
    """The entry of a torchvision class, with its constructor's arguments for each split."""

    def make(root: Path, download: bool) -> list[Any]:
        from torchvision import datasets

        with warnings.catch_warnings():  # numpy's, about torchvision's old pickles
            warnings.simplefilter("ignore")
            return [getattr(datasets, name)(root, download=download, **s) for s in splits]

    def read(root: Path) -> _Raw:
        data = make(root, False)
        return _from_torchvision(data, data[0].classes)

    def fetch(root: Path) -> None:
        make(root, True)

    return _Entry(read, fetch, f"{archive} into {{root}}")


def _read_digits(root: Path) -> _Raw:
    """scikit-learn's 1,797 handwritten digits (UCI optdigits' test part), a fifth of them as test."""
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
    return _Raw(train, test, tuple("0123456789"))


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


def _read_fashion(root: Path) -> _Raw:
    folder = _fashion_folder(root)
    if folder is None:
        raise UserError(f"Fashion-MNIST is not in {root}: put {_FASHION_FILES.format(root=root)}")

    def split(prefix: str) -> ArrayImages:
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
        return ArrayImages(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())

    return _Raw(split("train"), split("t10k"), _FASHION_CLASSES)


def _fetch_fashion(root: Path) -> None:
    if _fashion_folder(root) is None:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(root, download=True)


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
    except (EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or not an IDX file ({_first_line(error)}): copy it again"
        ) from error


def _read_folder(root: Path) -> _Raw:
    """Images below `root`: folders of classes, or unlabelled; or both below train/, val/ and test/."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the images' folder as --data.root")
    if not (root / "train").is_dir():
        train, classes = _read_split(root, None)
        return _Raw(train, None, classes)
    train, classes = _read_split(root / "train", None)
    val, test = (
        _read_split(root / name, classes)[0] if (root / name).is_dir() else None
        for name in ("val", "test")
    )
    return _Raw(train, test, classes, val)


def _read_split(root: Path, known: tuple[str, ...] | None) -> tuple[ImageFiles, tuple[str, ...]]:
    def images(folder: Path, pattern: str) -> list[Path]:
        found = folder.glob(pattern)
        return sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())

    groups = {p.name: images(p, "**/*") for p in sorted(root.iterdir()) if p.is_dir()}
    groups = {name: paths for name, paths in groups.items() if paths}
    flat = images(root, "*")
    if not groups and not flat:
        raise UserError(
            f"{root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}): give the folder that holds "
            "them, or one folder a class"
        )
    classes = tuple(groups) if known is None else known
    unknown = [name for name in groups if name not in classes]
    if unknown and known is not None:
        raise UserError(f"{root / unknown[0]} is a class that train/ doesn't have: remove it")
    paths = flat + [p for group in groups.values() for p in group]
    labels = [UNLABELLED] * len(flat) + [
        classes.index(name) for name, group in groups.items() for _ in group
    ]
    return ImageFiles(paths, torch.tensor(labels, dtype=torch.int64)), classes


def _read_npz(root: Path) -> _Raw:
    """A NumPy file of arrays, as MedMNIST's: `train_images`, `train_labels`, and so for val and test.

    Images are uint8 `[N, H, W]` or `[N, H, W, C]`, labels `[N]` or `[N, 1]`; labels may be missing.
    """
    if not root.is_file():
        raise UserError(f"there is no file {root}: give the .npz file as --data.root")
    try:
        with np.load(root, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{root} is not a readable .npz file ({_first_line(error)})") from error
    if "train_images" not in arrays:
        raise UserError(f"{root} has no array 'train_images', only {', '.join(arrays) or 'nothing'}")

    def split(name: str) -> ArrayImages | None:
        if f"{name}_images" not in arrays:
            return None
        images = torch.from_numpy(arrays[f"{name}_images"])
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        labels = arrays.get(f"{name}_labels", np.full(len(images), UNLABELLED))
        return ArrayImages(images, torch.from_numpy(labels.astype(np.int64).reshape(len(images))))

    train = split("train")
    assert train is not None
    classes = tuple(str(c) for c in range(int(train.labels.max()) + 1))
    return _Raw(train, split("test"), classes, split("val"))


_FASHION_FILES = (
    "the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz "
    "and t10k-labels-idx1-ubyte.gz into {root}/FashionMNIST/raw, or install Debian's package "
    "dataset-fashion-mnist"
)

_TRAIN_TEST: list[dict[str, Any]] = [{"train": True}, {"train": False}]

DATASETS: dict[str, _Entry] = {
    "digits": _Entry(_read_digits),
    "fashion_mnist": _Entry(_read_fashion, _fetch_fashion, _FASHION_FILES),
    "cifar10": _torchvision("CIFAR10", _TRAIN_TEST, "cifar-10-python.tar.gz"),
    "cifar100": _torchvision("CIFAR100", _TRAIN_TEST, "cifar-100-python.tar.gz"),
    "stl10": _torchvision(
        "STL10",
        [{"split": split} for split in ("train", "test", "unlabeled")],
        "stl10_binary.tar.gz",
    ),
    "folder": _Entry(_read_folder),
    "npz": _Entry(_read_npz),
}
