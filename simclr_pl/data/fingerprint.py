"""Which images a run saw: a hash that says whether two runs had the same data."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from simclr_pl.batch import UNLABELLED
from simclr_pl.data.packed import PackedImages
from simclr_pl.data.sources import AnySource, ImageFiles
from simclr_pl.data.splits import Splits

SAMPLE = 100
"""Images of a split whose pixels are looked at, evenly spread: a large set isn't read twice."""


def fingerprint(splits: Splits) -> str:
    """Hexadecimal SHA-256 of a data set.

    Of its class names; of train and test: the number of images, the names of all files or the sizes
    of all packed images, and a hundred images whole; and how many labels each class has. Which
    labels are held out for validation doesn't count: all seeds have the same fingerprint.

    Args:
        splits: as `load` gives them.
    """
    digest = hashlib.sha256(repr(splits.classes).encode())
    digest.update(_labels(splits.train, splits.val))
    for split in (splits.train, splits.test):
        if split is not None:
            _add_images(digest, split)
            digest.update(_labels(splits.test) if split is splits.test else b"")
    return digest.hexdigest()


def _labels(*sources: AnySource | None) -> bytes:
    """How many images each class has in these splits together."""
    labels = torch.cat([source.labels for source in sources if source is not None])
    return repr(torch.bincount(labels[labels != UNLABELLED]).tolist()).encode()


def _add_images(digest: Any, source: AnySource) -> None:
    digest.update(f"{len(source)} images of {source.channels} channels".encode())
    if isinstance(source, ImageFiles):
        names = "\n".join(f"{path.parent.name}/{path.name}" for path in source.paths)
        digest.update(names.encode())
    elif isinstance(source, PackedImages):
        digest.update(source.sizes.numpy().tobytes())
    for index in torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long().tolist():
        digest.update(_image(source, index))


def _image(source: AnySource, index: int) -> bytes:
    if isinstance(source, ImageFiles):
        return source.paths[index].read_bytes()
    return _pixels(source, index).cpu().numpy().tobytes()


def _pixels(source: Any, index: int) -> Tensor:
    if not isinstance(source, PackedImages):
        whole: Tensor = source.images[index]
        return whole
    start, (height, width) = int(source.starts[index]), source.sizes[index].tolist()
    return source.pixels[start : start + 3 * height * width]
