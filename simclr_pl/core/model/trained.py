"""What pretraining and fine-tuning do alike: refusals, optimisation, what a checkpoint says."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from simclr_pl.core.lookup import Choice
from simclr_pl.core.model import optim
from simclr_pl.core.model.checkpoint import KEY, description
from simclr_pl.core.model.encoder import EncoderSpec
from simclr_pl.core.model.geometry import Geometry, geometry_of
from simclr_pl.core.model.log import is_logged, log_gradient_norm
from simclr_pl.core.model.refused import check_accumulation, check_trainer


class TrainedModule(L.LightningModule):
    """A module that is trained on the global batch, and whose checkpoints name what it is.

    Attributes:
        optimization: which optimiser, and how it moves the weights.
        schedule: of the learning rate.
        schedule_interval: when a schedule other than the cosine steps.
        seed: of the training.
        spec: of the encoder, as it was built.
        geometry: of the images that it was last trained on, or was built for; `None` until then.
    """

    optimization: optim.OptimizerSettings
    schedule: Choice = optim.COSINE
    schedule_interval: optim.Interval = "epoch"
    seed: int
    spec: EncoderSpec
    geometry: Geometry | None = None

    def configure_callbacks(self) -> list[L.Callback]:
        """Lightning's first hook with a trainer: refuses one that would train something else."""
        check_trainer(self.trainer)
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the format's version and what `load_encoder` needs."""
        if self.geometry is not None:
            checkpoint[KEY] = description(self.spec, self.geometry, self.seed)

    def on_train_start(self) -> None:
        """From here on the network is one of these images, and a resume on its own cosine.

        (That is, from the first step: it may have another end than before.)
        """
        self.geometry = geometry_of(self.trainer.datamodule) or self.geometry  # type: ignore[attr-defined]
        if isinstance(schedule := self.lr_schedulers(), optim.WarmupCosine):
            schedule.catch_up()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Callbacks may have made a step one of several batches."""
        check_accumulation(self.trainer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the global gradient's norm, before any clipping."""
        if is_logged(self.trainer):
            log_gradient_norm(self)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser and schedule; steps and global batch come from the trainer."""
        return optim.configure(self, self.optimization, self.schedule, self.schedule_interval)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up, for the data module's global batch."""
        return optim.peak_learning_rate(self.optimization, self.trainer.datamodule.batch_size)  # type: ignore[attr-defined]

    @property
    def warmup_steps(self) -> int:
        """Optimiser steps of warm-up."""
        return optim.warmup_steps(self.optimization, self.trainer)
