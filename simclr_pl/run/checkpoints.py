"""When checkpoints are written, how, and what never gets into one."""

import os
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from simclr_pl import lightning_internals as internals
from simclr_pl.core.batch import StepOutput
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.model.checkpoint import check_whole
from simclr_pl.monitors.moments import is_last, log_now, validate_at_the_end
from simclr_pl.run.metrics import MetricsFile
from simclr_pl.run.unfinished import UnfinishedError
from simclr_pl.writing import beside, make_folder, whole

UNTOUCHED = "the checkpoint before is whole, and --resume goes on from it"
"""What an error adds where a new checkpoint cannot be written beside an old one."""


class Stop(Protocol):
    """Tells a training to save and end, as `cluster.signals.StopRequest` does.

    Attributes:
        signal: the signal that came to this process, if one did.
        agreed: whether all ranks know that they are to stop.
    """

    signal: int | None
    agreed: bool

    @property
    def name(self) -> str:
        """The signal's name."""

    def begin(self, trainer: L.Trainer) -> None:
        """Makes later signals wait for the end of a step."""

    def ask(self) -> bool:
        """Whether to stop; asked by all ranks equally often."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint whole: a kill or a full disk leaves the old file or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Saves `checkpoint` to `path`, a local file."""
        path = Path(path)
        make_folder(path.parent)
        with whole(path, then=UNTOUCHED if path.exists() else "") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file whose checksums fit, by Lightning's own way."""
        check_whole(path)
        return super().load_checkpoint(path, *args, **kwargs)


class SaveCheckpoint(Checkpoint):
    """Keeps `last.ckpt` current, and copies of some epochs if wanted.

    A checkpoint is written after its step's validation and numbers, so that a resume lacks neither.

    Args:
        every_n_epochs: how often `last.ckpt` is written; the last epoch always is.
        every_n_steps: also in mid-epoch, every so many optimiser steps (default: no).
        keep_every_n_epochs: keep the checkpoint of every so many epochs as `epoch=NNNN.ckpt`
            (default: `last.ckpt` alone).

    Raises:
        UserError: a number below 1.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        keep_every_n_epochs: int | None = None,
    ) -> None:
        for name, value in locals().copy().items():
            if isinstance(value, int):
                check(value >= 1, f"checkpoint.{name}", value, "at least 1")
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.keep_every_n_epochs = keep_every_n_epochs
        self._chose_path = False
        self.path: Path | None = None
        """Where `last.ckpt` goes: set by the command line, else below `default_root_dir`."""
        self.stop: Stop | None = None
        """What tells whether to save and end: set by the command line."""
        self._forget()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the place for checkpoints, and forgets an earlier fit."""
        if self.path is None or self._chose_path:  # another trainer has another place
            self._chose_path = True
            self.path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if self.stop is not None:
            internals.leave_signals_alone(trainer)
        if stage == "fit":
            self._forget()
            validate_at_the_end(trainer)

    def _forget(self) -> None:
        self._saved_at = self._final_at = -1  # steps: of the last save, of a last validation
        self._once_more = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Drops the timer's state: `max_time` is per session, earlier ones would end this one."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer):
                checkpoint["callbacks"].pop(callback.state_key, None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Heeds signals from here on: there is something to save."""
        if self.stop is not None:
            self.stop.begin(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves in mid-epoch, unless a validation comes first."""
        stopping = self._is_to_stop()
        if trainer.global_step < trainer.log_every_n_steps and is_last(trainer):  # type: ignore[attr-defined]
            _log_now(trainer, trainer.loggers)  # a run too short for its loggers' turn
        if trainer.is_last_batch or internals.validates_behind_step(trainer):
            return  # that comes first
        if stopping or self._is_due(trainer):
            if internals.logs_this_step(trainer):
                _log_now(trainer)
            self._save(trainer, last=is_last(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops before a validation, which a resume then begins with."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        # A run that resumes behind `_save_amid_validation` finds the validation begun.
        internals.forget_broken_off_validation(trainer)
        self._final_at = trainer.global_step if is_last(trainer) else -1
        self._save_amid_validation(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Breaks a validation off: however long it takes, a stop doesn't wait for its end."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._is_to_stop()
            self._save_amid_validation(trainer)

    def stop_amid_wait(self, trainer: L.Trainer) -> None:
        """Saves and ends between two steps, or in a validation, where no batch comes.

        Raises:
            UnfinishedError: that was asked for.
        """
        if self.stop is None or self.stop.signal is None or trainer.world_size > 1:
            return
        self.stop.agreed = True
        if trainer.validating:
            self._save_amid_validation(trainer)
        # A resume takes this for a validation's end (`validate_at_the_end`), and counts a batch.
        with internals.a_batch_back(trainer):
            self._save(trainer)

    def _save_amid_validation(self, trainer: L.Trainer) -> None:
        """Saves a state from which a resume validates from the start, where a stop was agreed."""
        if self.stop is None or not self.stop.agreed or self._once_more:
            return
        if trainer.global_step == trainer.max_steps:  # Lightning would find nothing left to do
            return
        internals.validation_as_not_begun(trainer)
        self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves in mid-epoch, behind a validation: a resume would not make up for a lost one."""
        if trainer.state.fn == TrainerFn.FITTING and self._is_due(trainer):
            self._save(trainer, last=is_last(trainer))

    def _save(self, trainer: L.Trainer, *, last: bool = False) -> None:
        """Saves `last.ckpt`, and ends the run where a stop was agreed."""
        trainer.save_checkpoint(str(self.path))
        self._saved_at = trainer.global_step
        if not last:  # then there is nothing left to go on with
            self._end_if_to_stop(trainer)

    def _is_to_stop(self) -> bool:
        return self.stop is not None and self.stop.ask()

    def _end_if_to_stop(self, trainer: L.Trainer) -> None:
        if self.stop is not None and self.stop.agreed:
            raise UnfinishedError(
                f"stopped by {self.stop.name} at step {trainer.global_step}, saved in {self.path}"
            )

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Whether this step is one to save; an epoch's last step is left to the epoch's end."""
        if trainer.is_last_batch or trainer.fast_dev_run or trainer.sanity_checking:  # type: ignore[attr-defined]
            return False
        every = self.every_n_steps
        wanted = is_last(trainer) or (every is not None and trainer.global_step % every == 0)
        return wanted and not self._once_more

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves behind the epoch's validation, or behind another one where that ends the run."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        last = is_last(trainer)
        if last and trainer.enable_validation and self._final_at != trainer.global_step:
            self._once_more = True
            internals.validate_now(trainer)  # the one before has just made this step the last
        if not internals.is_epoch_whole(trainer):
            self._save_broken_off(trainer)
            return
        done = trainer.current_epoch + 1
        keep = self.keep_every_n_epochs is not None and done % self.keep_every_n_epochs == 0
        stopping = self._is_to_stop()
        if done % self.every_n_epochs and not keep and not last and not stopping:
            return
        assert self.path is not None
        _log_now(trainer)
        # What is kept comes first: a run that is killed in between does this epoch again.
        copy = self.path.with_name(f"epoch={done:04d}.ckpt")
        trainer.save_checkpoint(str(copy if keep else self.path))
        if keep and trainer.is_global_zero:
            second = beside(self.path)
            os.link(copy, second)  # no second copy on disk: `last.ckpt` is replaced, not changed
            second.replace(self.path)
        if not last:  # then there is nothing left to go on with
            self._end_if_to_stop(trainer)

    def _save_broken_off(self, trainer: L.Trainer) -> None:
        """Saves an epoch that was broken off as what it is, unless a validation has seen to it."""
        if self._saved_at == trainer.global_step:
            return
        # Lightning has counted it as an epoch, and as behind the step: it goes on from within.
        with internals.within_epoch(trainer):
            _log_now(trainer)
            self._save(trainer, last=True)


def _log_now(trainer: L.Trainer, loggers: list[Logger] | None = None) -> None:
    """Puts a step's numbers into `metrics.csv` (or other loggers) before its checkpoint is saved.

    Lightning logs them only after the hooks that save: a kill in between would lose them, since a
    resume goes on behind this step. It logs them again into the same row.
    """
    numbers = internals.numbers_to_log(trainer)
    if loggers is None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
    log_now(trainer, numbers, loggers if numbers else [])


REMEDY = (
    "lower --model.learning_rate, raise --model.warmup_epochs, or train with --trainer.precision "
    "32-true"
)
"""The advice for a pretraining whose loss is no longer a number."""


class StopOnNaN(L.Callback):
    """Ends a run whose loss is no longer a number, before that gets into a checkpoint.

    On a CPU each step is looked at; on an accelerator, where looking costs a synchronisation, the
    steps that are logged and those before a checkpoint.

    Args:
        remedy: what the error advises.
    """

    def __init__(self, remedy: str = REMEDY) -> None:
        self.remedy = remedy
        self._bad: Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forgets the loss of an earlier fit."""
        if stage == "fit":
            self._bad = None

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: StepOutput, *_: Any
    ) -> None:
        """Remembers on the device whether the loss has ever been anything but finite."""
        bad = ~torch.isfinite(outputs["loss"].detach())
        self._bad = bad if self._bad is None else self._bad | bad
        cheap = bad.device.type == "cpu"
        if cheap or trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            self._look(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuses to save weights that are not numbers; what is on disk stays as it is."""
        self._look(trainer)
        weights = checkpoint["state_dict"].values()
        if not all(bool(torch.isfinite(w).all()) for w in weights if w.is_floating_point()):
            raise UserError(self._explain("the weights are", trainer))

    def _look(self, trainer: L.Trainer) -> None:
        if self._bad is not None and bool(self._bad):
            raise UserError(self._explain("the loss is", trainer))

    def _explain(self, what: str, trainer: L.Trainer) -> str:
        return (
            f"{what} no longer a number (NaN or infinite) at step {trainer.global_step}: "
            f"{self.remedy}. Checkpoints saved before are untouched"
        )
