"""Whether a training ends with this step: everything that is done "at the end" asks here."""

from typing import Any

import lightning as L


def is_last(trainer: L.Trainer) -> bool:
    """Whether the step just taken is the last, as far as is known now.

    It is where `max_epochs` or `max_steps` is reached, and where somebody has set
    `trainer.should_stop`: `max_time` does so behind a step, early stopping behind a validation,
    which then wasn't the last: `SaveCheckpoint` has another one follow.
    """
    loop = trainer.fit_loop
    if trainer.global_step == trainer.max_steps:
        return True
    if trainer.should_stop and loop._can_stop_early:
        return True
    return trainer.current_epoch + 1 == trainer.max_epochs and is_epoch_whole(trainer)


def is_epoch_whole(trainer: L.Trainer) -> bool:
    """Whether the step just taken is its epoch's last one."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validate_at_the_end(trainer: L.Trainer) -> None:
    """Has Lightning validate behind the last step, which `check_val_every_n_epoch` may not meet."""
    loop: Any = trainer.fit_loop.epoch_loop
    if "_should_check_val_fx" in vars(loop):
        return
    original = loop._should_check_val_fx

    def should_validate(data_fetcher: Any) -> bool:
        # Saved in mid-epoch, behind the validation of a run that has been told to go on since: a
        # resume has to skip that one, as it does those that are due, or it counts a step too few.
        behind = loop.restarting and loop.restarted_on_last and not is_epoch_whole(trainer)
        return original(data_fetcher) or behind or (trainer.enable_validation and is_last(trainer))

    loop._should_check_val_fx = should_validate


def validate_once_more(trainer: L.Trainer) -> None:
    """Validates behind an epoch's end: a validation has just made it the last one."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped -= 1  # loggers are to count the step that has just been taken
    trainer.validating = True
    try:
        loop.val_loop.run()
    finally:
        trainer.training = True
        loop._batches_that_stepped += 1
