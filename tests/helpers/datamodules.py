"""Data modules that are ready, and quiet trainers for them."""

from typing import Any

import lightning as L
from commands import QUIET

from simclr_pl import ContrastiveDataModule


def trainer(**kwargs: Any) -> L.Trainer:
    return L.Trainer(**(QUIET | {"max_epochs": 1} | kwargs))


def ready(*args: Any, **kwargs: Any) -> ContrastiveDataModule:
    data = ContrastiveDataModule(*args, **kwargs)
    data.prepare_data()
    data.setup()
    return data
