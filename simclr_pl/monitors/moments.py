"""When a callback's turn comes, whether a training ends with this step, and logging now."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn

from simclr_pl import lightning_internals as internals


def is_last(trainer: L.Trainer) -> bool:
    """Whether the step just taken is the last, as far as is known now.

    The last step reaches `max_epochs` or `max_steps`, or somebody has set `trainer.should_stop`.
    `max_time` sets it behind a step. Early stopping sets it behind a validation, which then wasn't
    the last: `SaveCheckpoint` makes another one follow.
    """
    if trainer.global_step == trainer.max_steps or internals.stops_early(trainer):
        return True
    return trainer.current_epoch + 1 == trainer.max_epochs and internals.is_epoch_whole(trainer)


def validate_at_the_end(trainer: L.Trainer) -> None:
    """Makes Lightning validate behind the last step, which `check_val_every_n_epoch` may miss."""

    def due() -> bool:
        # Saved in mid-epoch, behind the validation of a run that has been told to go on since: a
        # resume has to skip that one, as it does those that are due, or it counts a step too few.
        behind = internals.resumes_behind_step(trainer) and not internals.is_epoch_whole(trainer)
        return behind or (trainer.enable_validation and is_last(trainer))

    internals.validate_also(trainer, due)


def due(trainer: L.Trainer, every_n_epochs: int) -> bool:
    """Whether a monitor's turn has come: every `every_n_epochs` epochs, and at the end."""
    if not every_n_epochs or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
        return False
    return is_last(trainer) or (trainer.current_epoch + 1) % every_n_epochs == 0


def log_now(
    trainer: L.Trainer, numbers: Mapping[str, Any], loggers: Iterable[Logger] | None = None
) -> None:
    """Logs values of the step just taken at once, with the epoch.

    Lightning's `log` would hand them on behind all hooks, only on steps that `log_every_n_steps`
    divides, and again on later steps that have no new value.

    Args:
        trainer: the trainer that has taken the step.
        numbers: by name.
        loggers: the loggers that get them (default: all of the trainer's).
    """
    for logger in trainer.loggers if loggers is None else loggers:
        row = {**numbers, "epoch": trainer.current_epoch}
        logger.log_metrics(row, step=trainer.global_step - 1)
