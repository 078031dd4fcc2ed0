"""TensorBoard, for those who prefer it."""

from importlib.util import find_spec

from lightning.pytorch.loggers import TensorBoardLogger

from simclr_pl.errors import UserError, printable
from simclr_pl.run.directory import RunDirectory


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


def tensorboard_logger(run: RunDirectory, resume_at: int | None) -> TensorBoardLogger:
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
    return TensorBoardLogger(
        save_dir=run.path, name="tensorboard", version="", default_hp_metric=False,
        purge_step=resume_at,
    )  # fmt: skip
