"""Images of noise, where nothing hangs on what they show: arrays, tensors, files, data sets."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """An array of uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """A tensor of uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def write_image(path: Path, seed: int = 0, height: int = 8, width: int = 8) -> None:
    """A file in colours, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(height, width, 3, seed=seed)).save(path)


def write_images(folder: Path, count: int, height: int = 8, width: int = 8) -> Path:
    """A folder of files named by their numbers, each its own seed."""
    for number in range(count):
        write_image(folder / f"{number:03}.png", number, height, width)
    return folder


def write_dark_and_bright(folder: Path) -> None:
    """Two classes of 24 images each, which anybody can tell apart."""
    for number in range(48):
        image = pixels(20, 24, 3, seed=number) // 4 + 150 * (number % 2)
        path = folder / ("dark", "bright")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path)


def write_npz(path: Path, *shape: int, classes: int = 4, train: int = 40, **others: int) -> Path:
    """A data set of so many images a split, labelled in turn unless there are no classes."""
    arrays = {}
    for seed, (split, count) in enumerate({"train": train, **others}.items()):
        arrays[f"{split}_images"] = pixels(count, *shape, seed=seed)
        if classes:
            arrays[f"{split}_labels"] = np.arange(count) % classes
    np.savez(path, **arrays)
    return path
