"""TensorBoard, for those who prefer it."""

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any
from weakref import WeakSet

from lightning.pytorch.loggers import TensorBoardLogger

from simclr_pl.core.errors import UserError
from simclr_pl.run.directory import RunDirectory
from simclr_pl.writing import printable

_lost: WeakSet[TensorBoardLogger] = WeakSet()


def survived(logger: TensorBoardLogger, write: Callable[..., Any], *args: Any) -> None:
    """Writes to TensorBoard's files; where that fails it is said once, and the training goes on.

    Args:
        logger: whose files they are; after a failure nothing more is written there.
        write: what writes.
        args: of `write`.
    """
    if logger in _lost:
        return
    try:
        write(*args)
    except Exception as error:  # the thread that writes hands on what it has met, of any kind
        _lost.add(logger)
        what = " ".join(str(error).split()) or type(error).__name__
        sys.stdout.write(
            f"TensorBoard: no more is logged there ({what}); metrics.csv has all numbers\n"
        )


class TensorBoardFiles(TensorBoardLogger):
    """Lightning's, but that a training outlives its files: a full disk, a folder that is gone."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row."""
        survived(self, super().log_metrics, metrics, step)

    def save(self) -> None:
        """Writes hyperparameters."""
        survived(self, super().save)

    def finalize(self, status: str) -> None:
        """Closes the files."""
        survived(self, super().finalize, status)


def check_tensorboard() -> None:
    """Before anything is begun.

    Raises:
        UserError: TensorBoard isn't installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            "TensorBoard is not installed: pip install tensorboard (or simclr_pl[tensorboard]), "
            "or leave out --tensorboard and configs/with/tensorboard.yaml"
        )


def tensorboard_logger(run: RunDirectory, resume_at: int | None) -> TensorBoardFiles:
    """A logger into RUN/tensorboard, on the trainer's steps.

    Args:
        run: the run directory.
        resume_at: hide what was logged from this step on: a killed run had gone on behind its
            checkpoint. `None` is a new run.

    Raises:
        UserError: a directory that TensorBoard cannot write to.
    """
    if printable(str(run.path)) != str(run.path):
        raise UserError(
            f"{printable(str(run.path))} has bytes in its name that are no UTF-8, and TensorBoard "
            f"writes into no such directory: give another {run.option}, or leave out --tensorboard"
        )
    return TensorBoardFiles(
        save_dir=run.path, name="tensorboard", version="", default_hp_metric=False,
        purge_step=resume_at,
    )  # fmt: skip
