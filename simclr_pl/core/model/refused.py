"""Trainers that are refused, since they would train something else, or lose what they train."""

import lightning as L
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn

from simclr_pl.core.errors import UserError, check
from simclr_pl.core.lightning_internals import start_method, synchronises_batch_norm

_WHOLE_BATCH = (
    "would make a step of several batches, each with its own statistics and negatives: set "
    "data.batch_size to the batch you want, and in pretraining model.micro_batch_size to the "
    "images that fit in memory"
)

_CALLBACKS: dict[type[L.Callback], str] = {
    StochasticWeightAveraging: "replaces the learning rate's cosine by a schedule of its own: "
    "give EMAWeightAveraging, which leaves the schedule alone, or leave it out",
    LearningRateFinder: "moves model.learning_rate behind the recipe's back: leave it out, and try "
    "values with sweep, or by --model.learning_rate",
    BatchSizeFinder: "moves data.batch_size, and with it the learning rate and, in pretraining, "
    "the negatives: leave it out, and ask bench for the largest batch that fits",
}
"""Lightning's callbacks that are refused in training, and why."""


_NOT_ZERO = dict.fromkeys(
    ("max_epochs", "max_steps", "limit_train_batches"),
    "give at least 1, or leave it out (an untrained encoder is the baseline of compare)",
)

_LEAST = {
    "check_val_every_n_epoch": (1, ""),
    "log_every_n_steps": (0, " (never)"),
    "gradient_clip_val": (0, " (off)"),
}


def check_trainer(trainer: L.Trainer, *, training: bool | None = None) -> None:
    """Looks at a Trainer before it begins anything.

    Args:
        trainer: with its callbacks and strategy.
        training: whether it is about to train (default: what it is at).

    Raises:
        UserError: names what is refused, and what to do instead.
    """
    _check_launcher(trainer)
    if training is None:
        training = trainer.state.fn == TrainerFn.FITTING
    if not training:
        return
    check_accumulation(trainer)
    _check_numbers(trainer)
    if synchronises_batch_norm(trainer):
        raise UserError(
            "trainer.sync_batchnorm is not used: batch norm is global without it, in pretraining "
            "unless model.global_batch_norm is false"
        )
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        name = f"trainer.callbacks: {type(callback).__name__}"
        for kind, reason in _CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"{name} {reason}")
        if isinstance(callback, GradientAccumulationScheduler) and _accumulates(callback):
            raise UserError(f"{name} {_WHOLE_BATCH}")


def _check_numbers(trainer: L.Trainer) -> None:
    """Raises `UserError` for a training without a step, and for intervals that are none."""
    for name, why in _NOT_ZERO.items():
        if getattr(trainer, name) == 0:
            raise UserError(f"trainer.{name} is 0, which trains nothing: {why}")
    for name, (least, word) in _LEAST.items():
        value = getattr(trainer, name)
        check(value is None or value >= least, f"trainer.{name}", value, f"{least}{word} or more")


def _accumulates(schedule: GradientAccumulationScheduler) -> bool:
    return any(batches != 1 for batches in schedule.scheduling.values())


def check_accumulation(trainer: L.Trainer) -> None:
    """Looks at how many batches a step is made of, which a callback may change at any time.

    Raises:
        UserError: more than one.
    """
    if trainer.accumulate_grad_batches != 1:
        raise UserError(f"trainer.accumulate_grad_batches {_WHOLE_BATCH}")


def _check_launcher(trainer: L.Trainer) -> None:
    """Raises `UserError` where functions are to run in processes that are forked or spawned.

    Modules are built and trained in there, and gone with them; and whoever has started them sees
    neither a step nor a signal.
    """
    how = start_method(trainer)
    if how is not None:
        raise UserError(
            f"this Trainer's strategy trains in processes that it starts by {how} (ddp_notebook, "
            "ddp_fork, ddp_spawn, and Lightning's own choice for several devices in a notebook), "
            "and what is trained there is lost: in a notebook give Trainer(devices=1); several "
            "devices train from the command line (python -m simclr_pl) by --trainer.devices 2"
        )
