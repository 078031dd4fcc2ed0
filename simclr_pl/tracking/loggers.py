"""A run's W&B run: begun with its first step, told what it hangs on, ended with it."""

from typing import Any, Literal

import lightning as L
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from simclr_pl.run.directory import RunDirectory, is_rank_zero
from simclr_pl.run.metrics import MetricsFile
from simclr_pl.tracking.provenance import provenance
from simclr_pl.tracking.tensorboard import survived
from simclr_pl.tracking.wandb import WandbChoice, build_logger, failures, first_line, say

ROWS = "metrics_rows"
"""Where a checkpoint has the number of rows of its run's metrics.csv."""

Job = Literal["pretrain", "finetune"]


class Tracking(L.Callback):
    """Adds W&B's logger on rank 0, when everything is set up and nothing has been trained.

    A run that fails before its first step, for want of its data for instance, is no W&B run, and
    nothing is said of one.

    Args:
        run: the run directory.
        choice: of W&B's mode and names.
        job: what kind of run it is.
        config: what its config.yaml holds, which becomes the W&B run's config.
        artifact: what it starts from, in `project/name:alias`, if that is an artifact.
    """

    def __init__(
        self,
        run: RunDirectory,
        choice: WandbChoice,
        job: Job,
        config: dict[str, Any],
        artifact: str | None = None,
    ) -> None:
        self.run, self.choice, self.job = run, choice, job
        self.config, self.artifact = config, artifact

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the W&B run, or continues it."""
        if not is_rank_zero():
            return
        about = {**self.config, **provenance(trainer, pl_module)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                indented = yaml.safe_dump(about, sort_keys=False).replace("\n", "\n    ")
                text = ("config", f"    {indented}", trainer.global_step)
                survived(logger, logger.experiment.add_text, *text)
        wandb = build_logger(self.run, self.choice, self.job)
        if wandb is None:
            return
        trainer.loggers = [*trainer.loggers, wandb]
        wandb.log_hyperparams({**about, "artifact": self.artifact})
        if self.artifact is not None and not wandb.experiment.offline:
            try:
                wandb.experiment.use_artifact(self.artifact)
            except failures() as error:
                say(f"{self.artifact} is not linked ({first_line(error)})")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Brings numbers to disk: a run that is killed goes on behind them."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                checkpoint[ROWS] = logger.sync()
            if isinstance(logger, TensorBoardLogger):
                survived(logger, logger.experiment.flush)
