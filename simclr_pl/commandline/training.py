"""One training in its run directory: begun or resumed, logged, and ended in words."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from simclr_pl.cluster.out_of_memory import OutOfMemory, explained
from simclr_pl.cluster.ranks import Ranks
from simclr_pl.cluster.signals import StopRequest
from simclr_pl.cluster.slurm import Restarts
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.checkpoint import INCOMPLETE, read_checkpoint
from simclr_pl.images.workers.processes import told_of_waiting
from simclr_pl.run.checkpoints import SaveCheckpoint
from simclr_pl.run.config import check_same_recipe, save_config
from simclr_pl.run.directory import RunDirectory, is_rank_zero
from simclr_pl.run.ended import ended_by
from simclr_pl.run.metrics import MetricsFile, say_lost
from simclr_pl.run.older_runs import OlderRuns
from simclr_pl.run.seen import KeepSeen
from simclr_pl.run.unfinished import UnfinishedError
from simclr_pl.tracking.loggers import ROWS
from simclr_pl.tracking.tensorboard import tensorboard_logger
from simclr_pl.tracking.wandb import end_run

_RESUMED = (
    *("state_dict", "epoch", "global_step", "loops", "callbacks", "optimizer_states"),
    "lr_schedulers",
)
"""Keys of a checkpoint that Lightning reads on a resume."""


class Session:
    """A training, from the claim on its directory to its last step.

    Args:
        run: where everything of it goes.
        again: the options that, added to the same command, continue it.
        longer: the option that moves its end.
        stop: tells the training to stop when a signal has come.
    """

    def __init__(self, run: RunDirectory, again: str, longer: str, stop: StopRequest) -> None:
        self.run, self.again, self.longer, self.stop = run, again, longer, stop
        self.resume_from: Path | None = None
        """The checkpoint to resume from; `None` for a new run."""
        self._began = False
        self._ranks = Ranks({})
        self.recipe: dict[str, Any] = {}

    def claim(self, recipe: dict[str, Any], defaults: dict[str, Any], *, resume: bool) -> None:
        """Takes the directory, for a new run or to resume the run that it holds.

        Args:
            recipe: the run's, as its config.yaml is to hold it.
            defaults: of all options.
            resume: whether to continue the run in the directory.

        Raises:
            UserError: the directory holds a run and `resume` wasn't asked for; that run is broken
                or of another recipe; another process trains in it.
        """
        self.stop.how_to_go_on = "" if resume else self.again
        self.recipe, self._ranks = recipe, Ranks(recipe)
        self.run.claim(resume=resume)
        checkpoint = None
        if resume and self.run.last_checkpoint.exists():
            checkpoint = read_checkpoint(self.run.last_checkpoint)
            _check_resumable(checkpoint, str(self.run.last_checkpoint))
            model = checkpoint.get("hyper_parameters") or {}
            check_same_recipe(self.run, recipe, model, defaults)
            self.resume_from = self.run.last_checkpoint
        self.stop.restarts = Restarts(checkpoint)

    def loggers(self, *, tensorboard: bool) -> list[Logger]:
        """`metrics.csv`, and TensorBoard's files where they are wanted."""
        step = None
        if self.resume_from is not None:
            content = read_checkpoint(self.resume_from)
            step = int(content["global_step"])
            if is_rank_zero():
                say_lost(self.run.metrics, step, content.get(ROWS) or 0)
        loggers: list[Logger] = [MetricsFile(self.run.metrics, step)]
        return [*loggers, tensorboard_logger(self.run, step)] if tensorboard else loggers

    def callbacks(self) -> list[L.Callback]:
        """Watch over ranks and data; note that a step was finished, and why it was the last."""
        assert self.stop.restarts is not None
        watching = [OutOfMemory(), self._ranks, self.stop.restarts, OlderRuns()]
        return [*watching, KeepSeen(self.run, self.resume_from), _Began(self)]

    def train(self, trainer: L.Trainer, model: L.LightningModule, data: Any) -> None:
        """`Trainer.fit`, from the start or from the checkpoint to go on from.

        Raises:
            KeyboardInterrupt: Ctrl-C, with the step and how to go on.
            UnfinishedError: a signal, with the step.
            UserError: out of memory, with the largest batch that fits.
        """
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, SaveCheckpoint):
                callback.stop = self.stop
        path = str(self.resume_from) if self.resume_from else None
        if isinstance(data, ContrastiveDataModule):
            data.left_out = self.run.left_out

        def wait(seconds: float) -> None:
            self._wait(trainer, seconds)

        try:
            with self._ranks.meeting(trainer), explained(trainer), told_of_waiting(wait):
                trainer.fit(model, data, ckpt_path=path, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if not trainer.interrupted:
                raise
            raise KeyboardInterrupt(
                f"at step {trainer.global_step}: the same command with {self.again} continues"
            ) from None
        if trainer.is_global_zero:
            self._say_the_end(trainer)

    def _say_the_end(self, trainer: L.Trainer) -> None:
        step, checkpoint = trainer.global_step, self.run.last_checkpoint
        if self.resume_from and not self._began:
            longer = "--trainer.max_steps" if step == trainer.max_steps else self.longer
            sys.stdout.write(
                f"nothing left to train: {checkpoint} is at step {step}, the end of this recipe; "
                f"a larger {longer} goes on\n"
            )
        elif cause := ended_by(trainer):
            sys.stdout.write(
                f"ended by {cause} at step {step}, in epoch {trainer.current_epoch}: saved in "
                f"{checkpoint}; the same command with {self.again} goes on\n"
            )

    def _wait(self, trainer: L.Trainer, seconds: float) -> None:
        """Stops where that was asked for: when no images come, a step's end may be far off."""
        if self.stop.signal is None or not self.stop.training:
            return
        if not self._began:
            raise UnfinishedError(f"stopped by {self.stop.name} before the first step")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, SaveCheckpoint):
                callback.stop_amid_wait(trainer)

    def __enter__(self) -> None:
        """Within it the training is done."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Closes the run of Weights & Biases: the next training of this process has its own."""
        end_run(self.run, error)
        if error is None:
            self.run.release()

    def discard(self) -> None:
        """Leaves nothing behind of a training that never finished a step."""
        if not self._began:
            self.run.discard()
        self.run.release()


class _Began(L.Callback):
    def __init__(self, session: Session) -> None:
        self.session = session

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nothing has been refused: from here on config.yaml is that of this command."""
        if stage == "fit" and trainer.is_global_zero:
            save_config(self.session.run, self.session.recipe)

    def on_train_batch_end(self, *args: Any) -> None:
        self.session._began = True


def quieten() -> None:
    """Drops lines that say nothing to a user of this package, and no others."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The compiler looks for CUDA where there is none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # On a machine from which jobs are submitted not everything is one.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # Lightning's use of a renamed torch class.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Steps are counted over epochs: short epochs are logged all the same.
    warnings.filterwarnings("ignore", message="The number of training batches")
    # A resume may change callbacks, and `max_time` is one: those that have gone were meant to.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    # A ModelCheckpoint writes into its run's folder, which holds the run's own checkpoint.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # A network that is left as it is, on purpose.
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")


def _check_resumable(checkpoint: dict[str, Any], source: str) -> None:
    """Whether a training can go on from a checkpoint: an exported encoder is no such one.

    Raises:
        UserError: it lacks what Lightning reads on a resume.
    """
    lacking = [name for name in _RESUMED if name not in checkpoint]
    if lacking:
        raise UserError(INCOMPLETE.format(source, ", ".join(lacking)))
