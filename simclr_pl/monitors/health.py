"""Is pretraining healthy? Numbers on the unit sphere, and warnings where training goes wrong."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from simclr_pl.core.batch import EvaluationOutput, StepOutput
from simclr_pl.core.distributed import rank_and_world, sum_over_ranks
from simclr_pl.core.errors import check, in_one_line
from simclr_pl.monitors.health_metrics import StepHealth, in_float64, rankme, step_health
from simclr_pl.monitors.health_warnings import WINDOW, Trouble, Window
from simclr_pl.monitors.moments import log_now

T = TypeVar("T")

LOGGED = StepHealth._fields[:-2]
"""Numbers of a step that are logged; the last two fields serve the warnings alone."""


class HealthMonitor(L.Callback):
    """Logs `health/...` while training, and warns of collapse, a stuck loss and divergence.

    The first step and every `every_n_steps`-th log `positive_similarity`, `negative_similarity`,
    `alignment`, `uniformity`, `feature_std` and `projection_std`; where the objective states its
    chance level (NT-Xent's is log(2N - 1)), they log `chance_loss` and `loss_over_chance` as well.
    Each validation logs `rankme` of the split's clean images. A run gives each warning once, also
    over a resume. Any module works whose steps return `StepOutput` and `EvaluationOutput`. The
    device is waited for on the logged steps alone. An error in this arithmetic or in a warning is
    said once, and training goes on; an error in a collective operation of several ranks ends the
    training, since the other ranks would wait.

    Args:
        every_n_steps: optimiser steps from one log to the next; 0 turns the monitor off.

    Raises:
        UserError: a number below 0.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check(every_n_steps >= 0, "health.every_n_steps", every_n_steps, "0 (off) or more")
        self.every_n_steps = every_n_steps
        self._begin()

    def _begin(self) -> None:
        self._complained = False
        self._trouble = Trouble()
        self._loss: Tensor | float = 0.0  # this rank's sum over the window
        self._steps = 0  # of the window
        self._gram: Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begins anew: a second fit is another run, unless a checkpoint is restored after this."""
        self._gram = None  # of a validation that was broken off
        if stage == "fit":
            self._begin()

    # Training -------------------------------------------------------------------------------------

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: StepOutput,
        batch: Any,
        *_: Any,
    ) -> None:
        """Adds up the loss, and measures the step's health when its turn has come."""
        if not self.every_n_steps:
            return
        loss = outputs["loss"].detach()
        self._loss = loss + self._loss
        self._steps += 1
        if trainer.global_step == 1 or trainer.global_step % self.every_n_steps == 0:
            self._look(trainer, pl_module, outputs, getattr(batch, "per_image", 2))

    def _look(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: StepOutput, views: int
    ) -> None:
        given = outputs["features"], outputs["projections"], views
        health = self._survived(trainer, step_health, *given, alone=rank_and_world()[1] == 1)
        if health is None:
            return
        chance = outputs["chance"]
        losses = torch.stack([outputs["loss"].detach(), torch.as_tensor(self._loss)])
        loss, total = (sum_over_ranks(losses) / rank_and_world()[1]).tolist()
        numbers = {f"health/{name}": getattr(health, name) for name in LOGGED}
        if chance is not None:
            numbers |= {"health/loss_over_chance": loss - chance, "health/chance_loss": chance}
        for name, value in numbers.items():
            pl_module.log(name, value, logger=False)  # for other callbacks
        log_now(trainer, numbers)
        if self._steps < WINDOW:
            return
        window = Window(total / self._steps, chance, health, trainer.global_step)
        self._loss, self._steps = 0.0, 0
        self._survived(trainer, self._warn, trainer, window)

    def _warn(self, trainer: L.Trainer, window: Window) -> None:
        for sentence in self._trouble.look(window):
            if trainer.is_global_zero:
                trainer.print(sentence)

    def _survived(
        self, trainer: L.Trainer, work: Callable[..., T], *args: Any, alone: bool = True
    ) -> T | None:
        """Returns `work(*args)`, or `None` where that fails: the first error is printed.

        Args:
            trainer: prints the error.
            work: a function that may fail.
            args: arguments of `work`.
            alone: whether no other rank waits in `work` for this one; else errors are raised.
        """
        try:
            return work(*args)
        except Exception as error:  # whatever it is: no warning is worth a training
            if not alone:
                raise
            first, self._complained = not self._complained, True
            with suppress(Exception):  # it may be printing that fails
                if first and trainer.is_global_zero:
                    what = in_one_line(error)[:300]
                    trainer.print(f"warning: health is not watched ({what}); training goes on")
            return None

    # Validation -----------------------------------------------------------------------------------

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: EvaluationOutput, *_: Any
    ) -> None:
        """Adds this batch's features to the Gram matrix."""
        if self.every_n_steps and not trainer.sanity_checking:
            rows = in_float64(outputs["features"])
            gram = rows.T @ rows
            self._gram = gram if self._gram is None else self._gram + gram

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs RankMe over all ranks' images."""
        gram, self._gram = self._gram, None
        if gram is not None:
            # The same number on all ranks, whose maximum has no rounding.
            many = rank_and_world()[1] > 1
            value = self._survived(trainer, rankme, sum_over_ranks(gram))
            value = math.nan if value is None else value
            pl_module.log("health/rankme", value, sync_dist=many, reduce_fx="max")

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The warnings' state, and of the window so far the number of steps and their loss.

        The loss is a sum over steps of the mean over ranks, `None` before the first step.
        """
        loss = None
        if self._steps:
            total = sum_over_ranks(torch.as_tensor(self._loss).clone())
            loss = float(total) / rank_and_world()[1]
        return {"trouble": dict(self._trouble.state), "loss": loss, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a checkpoint on any number of ranks: rank 0 keeps the loss for all."""
        self._trouble.state, self._steps = dict(state_dict["trouble"]), state_dict["steps"]
        rank, world = rank_and_world()
        self._loss = (state_dict["loss"] or 0.0) * (0 if rank else world)
