"""Data modules that are ready, and quiet trainers for them."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from commands import QUIET

from simclr_pl import ContrastiveDataModule


def trainer(**kwargs: Any) -> L.Trainer:
    return L.Trainer(**(QUIET | {"max_epochs": 1} | kwargs))


def ready(**kwargs: Any) -> ContrastiveDataModule:
    data = ContrastiveDataModule(**kwargs)
    data.prepare_data()
    data.setup()
    return data


def write_npz(path: Path, *shape: int, train: int = 40, **others: int) -> Path:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": train, **others}.items():
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    np.savez(path, **arrays)
    return path
