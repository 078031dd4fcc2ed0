"""Lightning's ModelCheckpoint in a run: its folder, and metrics that are not logged each epoch."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from simclr_pl.lightning_internals import save_best_if


def keep_in(trainer: L.Trainer, folder: Path) -> None:
    """Makes each ModelCheckpoint write into a run's folder, and wait for the metric it monitors.

    Lightning ends a training in which a validation lacks that metric: `knn/val_top1` comes every
    ten epochs. A value that is left over from an earlier epoch saves nothing.

    Args:
        trainer: with its callbacks.
        folder: for the checkpoints of callbacks without a `dirpath` of their own.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            if callback.dirpath is None:
                callback.dirpath = str(folder.absolute())
            if callback.monitor is not None:
                _wait_for_number(callback)


def _wait_for_number(callback: ModelCheckpoint) -> None:
    seen: list[Any] = [None]

    def is_new(trainer: L.Trainer) -> bool:
        number = trainer.callback_metrics.get(str(callback.monitor))
        if number is None or number is seen[0]:
            return False
        seen[0] = number
        return True

    save_best_if(callback, is_new)


def say_unseen(trainer: L.Trainer) -> None:
    """Says at the end which ModelCheckpoint has never had its metric, and so kept nothing."""
    there = trainer.callback_metrics
    for callback in trainer.checkpoint_callbacks:
        monitor = callback.monitor if isinstance(callback, ModelCheckpoint) else None
        if monitor is not None and monitor not in there:
            sys.stdout.write(
                f"trainer.callbacks: ModelCheckpoint has kept nothing, since no number is called "
                f"{monitor}: there are {', '.join(sorted(map(str, there)))}\n"
            )
