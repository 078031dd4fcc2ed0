"""Data sets that torchvision downloads and reads into memory: CIFAR, STL-10."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.errors import UserError
from simclr_pl.images.readers.checksums import checked_once
from simclr_pl.images.readers.reader import Entry, Raw


def _from_torchvision(splits: list[Any], classes: list[str]) -> Raw:
    """Torchvision sets in memory: train, test, and perhaps unlabelled images for train."""
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
    return Raw(ArrayImages(images, labels), test=ArrayImages(*test), classes=tuple(classes))


def torchvision_set(name: str, splits: list[dict[str, Any]], archive: str) -> Entry:
    """The table's row for a torchvision class.

    Args:
        name: the class.
        splits: its constructor's arguments for train, test, and perhaps unlabelled images.
        archive: the file that torchvision downloads and unpacks.
    """

    def make(root: Path, download: bool = False, *, several: bool = True) -> list[Any]:
        from torchvision import datasets

        kind = checked_once(getattr(datasets, name))
        with warnings.catch_warnings():  # NumPy warns of torchvision's old pickles
            warnings.simplefilter("ignore")
            parts = splits if several else splits[:1]
            return [kind(root, download=download, **each) for each in parts]

    def read(root: Path) -> Raw:
        try:
            data = make(root)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{name.lower()} is not in {root}, or not whole: put {archive} into {root}"
            ) from error
        return _from_torchvision(data, data[0].classes)

    def there(root: Path) -> bool:
        with suppress(OSError, RuntimeError):
            return bool(make(root, several=False))
        return False

    def fetch(root: Path, into: Path) -> None:
        if (root / archive).is_file():  # put there by hand, or not unpacked yet
            (into / archive).symlink_to((root / archive).absolute())
        make(into, True, several=False)

    return Entry(read, fetch, there, f"{archive} into {{root}}")
