"""Is pretraining healthy? A monitor of `sphere`'s numbers, and warnings where it goes wrong."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from simclr_pl.core.batch import EvaluationOutput, StepOutput
from simclr_pl.core.distributed import rank_and_world, sum_over_ranks
from simclr_pl.core.errors import UserError
from simclr_pl.monitors.health_metrics import in_float64, rankme, step_health
from simclr_pl.monitors.health_warnings import WINDOW, Trouble, Window
from simclr_pl.monitors.moments import log_now

T = TypeVar("T")


class HealthMonitor(L.Callback):
    """Logs `health/...` while training, and warns once each of what needs a hand.

    Every so many steps, and on the first: `positive_similarity`, `negative_similarity`,
    `alignment`, `uniformity`, `feature_std`, `projection_std`, and where the objective states its
    chance level (NT-Xent's is log(2N - 1)) `chance_loss` and `loss_over_chance`; with each
    validation `rankme`, of the split's clean images. Warns of collapse, a loss stuck at chance, and
    divergence, once each in a run, also over a resume. Works with any module whose steps return
    `StepOutput` and `EvaluationOutput`. Between those steps the device is not waited for. An error
    in this arithmetic or in a warning is said once, and training goes on; one in a collective
    operation of several ranks ends it, since others would wait.

    Args:
        every_n_steps: how often, in optimiser steps; 0 turns it off.

    Raises:
        UserError: a number below 0.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 0:
            raise UserError(f"health.every_n_steps is {every_n_steps}, but must be 0 (off) or more")
        self.every_n_steps = every_n_steps
        self._begin()

    def _begin(self) -> None:
        self._complained = False
        self._trouble = Trouble()
        self._loss: Tensor | None = None  # this rank's sum over the window
        self._steps = 0  # of the window
        self._gram: Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Another fit is another run, unless a checkpoint is restored behind this."""
        self._gram = None  # of a validation that was broken off
        if stage == "fit":
            self._begin()

    # Training -------------------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: StepOutput,  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds up the loss, and looks when it is time."""
        if not self.every_n_steps:
            return
        loss = outputs["loss"].detach()
        self._loss = loss.clone() if self._loss is None else self._loss.to(loss) + loss
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
        assert self._loss is not None
        losses = sum_over_ranks(torch.stack([outputs["loss"].detach(), self._loss]))
        loss, total = (losses / rank_and_world()[1]).tolist()
        numbers: dict[str, float] = health._asdict()
        del numbers["images"], numbers["dimension"]
        if chance is not None:
            numbers |= {"loss_over_chance": loss - chance, "chance_loss": chance}
        for name, value in numbers.items():
            pl_module.log(f"health/{name}", value, logger=False)  # for other callbacks
        log_now(trainer, {f"health/{name}": value for name, value in numbers.items()})
        if self._steps < WINDOW:
            return
        window = Window(
            total / self._steps,
            chance,
            health.feature_std,
            health.projection_std,
            health.dimension,
            health.images,
            trainer.global_step,
        )
        self._loss, self._steps = None, 0
        self._survived(trainer, self._warn, trainer, window)

    def _warn(self, trainer: L.Trainer, window: Window) -> None:
        for sentence in self._trouble.look(window):
            if trainer.is_global_zero:
                trainer.print(sentence)

    def _survived(
        self, trainer: L.Trainer, work: Callable[..., T], *args: Any, alone: bool = True
    ) -> T | None:
        """What some work returns; an error in it is said once, and ends no training.

        Args:
            trainer: says it.
            work: may fail.
            args: of `work`.
            alone: whether no other rank waits for this one in it; else errors pass.
        """
        try:
            return work(*args)
        except Exception as error:  # whatever it is: no warning is worth a training
            if not alone:
                raise
            first, self._complained = not self._complained, True
            what = " ".join(str(error).split())[:300]
            with suppress(Exception):  # it may be printing that fails
                if first and trainer.is_global_zero:
                    trainer.print(
                        f"warning: health is not watched ({type(error).__name__}: {what}); "
                        "training goes on"
                    )
            return None

    # Validation -----------------------------------------------------------------------------------

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: EvaluationOutput,  # type: ignore[override]
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
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
        """What has been seen and said, and the window's loss, the mean over ranks."""
        loss = None
        if self._loss is not None:
            loss = float(sum_over_ranks(self._loss.clone())) / rank_and_world()[1]
        return {"trouble": dict(self._trouble.state), "loss": loss, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from there, on any number of ranks: the first keeps the loss for all."""
        self._trouble.state = dict(state_dict["trouble"])
        self._steps, loss = state_dict["steps"], state_dict["loss"]
        rank, world = rank_and_world()
        share = world if rank == 0 else 0
        self._loss = None if loss is None else torch.tensor(loss * share, dtype=torch.float64)
