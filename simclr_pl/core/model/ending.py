"""Whether a training ends with this step: everything that is done "at the end" asks here."""

import lightning as L

from simclr_pl.core.lightning_internals import (
    is_epoch_whole,
    resumes_behind_step,
    stops_early,
    validate_also,
)


def is_last(trainer: L.Trainer) -> bool:
    """Whether the step just taken is the last, as far as is known now.

    It is where `max_epochs` or `max_steps` is reached, and where somebody has set
    `trainer.should_stop`: `max_time` does so behind a step, early stopping behind a validation,
    which then wasn't the last: `SaveCheckpoint` has another one follow.
    """
    if trainer.global_step == trainer.max_steps or stops_early(trainer):
        return True
    return trainer.current_epoch + 1 == trainer.max_epochs and is_epoch_whole(trainer)


def validate_at_the_end(trainer: L.Trainer) -> None:
    """Has Lightning validate behind the last step, which `check_val_every_n_epoch` may not meet."""

    def due() -> bool:
        # Saved in mid-epoch, behind the validation of a run that has been told to go on since: a
        # resume has to skip that one, as it does those that are due, or it counts a step too few.
        behind = resumes_behind_step(trainer) and not is_epoch_whole(trainer)
        return behind or (trainer.enable_validation and is_last(trainer))

    validate_also(trainer, due)
