"""Checkpoints as artifacts of Weights & Biases, of which the last few are kept."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import WandbLogger

from simclr_pl.monitors.moments import is_last
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.results import sha256
from simclr_pl.run.unfinished import UnfinishedError
from simclr_pl.tracking.wandb import SERVER_TIMEOUT_S, WandbChoice, first_line, run_id, say, silent
from simclr_pl.writing import write_text


class LogCheckpoints(Checkpoint):
    """Logs `last.ckpt` of an epoch's end as the artifact `<job>-<run id>`, where W&B is on.

    Its aliases are `latest` and `epoch-N`. Online each goes up as soon as it is saved, and all but
    the last `keep` are deleted there. Offline, where what is logged stays logged, the last `keep`
    go into the run when its session ends. An upload needs its file until it is through, so
    RUN/wandb/models holds hard links.

    It is a `Checkpoint` so that Lightning calls it behind the callback that saves.

    Args:
        run: the run directory.
        choice: which checkpoints, and how many are kept.
        job: what kind of run it is, which starts the artifact's name.
    """

    def __init__(self, run: RunDirectory, choice: WandbChoice, job: str) -> None:
        self.run, self.choice, self.job = run, choice, job
        self._saved_at = -1
        self._waiting: list[Path] = []
        self._logged: list[tuple[Any, Path]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds the checkpoints that a killed session has not logged."""
        if self.choice.log_model and _experiment(trainer) is not None:
            folder = self.run.path.absolute() / "wandb" / "models"
            links = sorted(folder.glob("epoch-*.ckpt"), key=_epoch)
            logged = {name.split(":")[1] for name in _names(self.run).values()}
            new = [link for link in links if link.stem not in logged]
            self._waiting = [link for link in new if _epoch(link) <= trainer.current_epoch]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes the step of a checkpoint, to know one of an epoch's end."""
        self._saved_at = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the checkpoint that has just been written."""
        experiment = _experiment(trainer)
        if experiment is None or not self._is_due(trainer):
            return
        with _survived():
            self._waiting.append(self._link(trainer.current_epoch + 1))
            for old in self._waiting[: -self.choice.keep]:
                old.unlink(missing_ok=True)
            del self._waiting[: -self.choice.keep]
            if not experiment.offline:
                self._log(experiment)
                self._prune(experiment, self._logged[:-1])  # the newest is on its way

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs what waits."""
        self._finish(trainer, prune=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Logs what waits: a run that was broken off has checkpoints too.

        One that was told to stop has no time to wait for uploads, and deletes nothing.
        """
        self._finish(trainer, prune=not isinstance(exception, UnfinishedError))

    def _finish(self, trainer: L.Trainer, *, prune: bool) -> None:
        experiment = _experiment(trainer)
        if experiment is None:
            return
        with _survived():
            self._log(experiment)
            if prune and not experiment.offline:
                self._prune(experiment, self._logged)

    def _is_due(self, trainer: L.Trainer) -> bool:
        every, done = int(self.choice.log_model), trainer.current_epoch + 1
        saved = self._saved_at == trainer.global_step
        return bool(every) and saved and (done % every == 0 or is_last(trainer))

    def _link(self, epoch: int) -> Path:
        """A name for the checkpoint that stays: `last.ckpt` is replaced, not changed."""
        link = self.run.path.absolute() / "wandb" / "models" / f"epoch-{epoch}.ckpt"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        os.link(self.run.last_checkpoint, link)
        return link

    def _log(self, experiment: Any) -> None:
        """Logs what waits, and keeps the names."""
        import wandb

        for path in self._waiting:
            name = f"{self.job}-{run_id(self.run)}"
            about = {"epoch": _epoch(path), "sha256": sha256(path)}
            artifact = wandb.Artifact(name, type="model", metadata=about)
            # The file stays as it is: W&B need not copy it into the home directory.
            artifact.add_file(str(path), name="last.ckpt", policy="immutable", skip_cache=True)
            logged = experiment.log_artifact(artifact, aliases=["latest", path.stem])
            self._logged.append((logged, path))
            _remember(self.run, str(about["sha256"]), f"{experiment.project}/{name}:{path.stem}")
        self._waiting = []

    def _prune(self, experiment: Any, through: list[tuple[Any, Path]]) -> None:
        """Deletes all but the last few, here and there.

        Args:
            experiment: the W&B run, online.
            through: what has been logged and should be uploaded by now; what isn't is waited for.
        """
        if not through:
            return
        through[-1][0].wait(timeout=math.ceil(SERVER_TIMEOUT_S))
        name = f"{experiment.entity}/{experiment.project}/{self.job}-{run_id(self.run)}"
        delete_old(name, self.choice.keep)
        done, self._logged = self._logged[: -self.choice.keep], self._logged[-self.choice.keep :]
        for _, path in done:
            path.unlink(missing_ok=True)


def delete_old(name: str, keep: int) -> None:
    """Deletes an artifact's versions on the server, but for the last few.

    Args:
        name: `entity/project/name`.
        keep: how many stay.
    """
    import wandb

    with silent():
        versions = list(wandb.Api(timeout=math.ceil(SERVER_TIMEOUT_S)).artifacts("model", name))
        versions.sort(key=lambda artifact: int(artifact.version.removeprefix("v")))
        for old in versions[:-keep]:
            old.delete(delete_aliases=True)


def artifact_of(run: RunDirectory, checkpoint: Path) -> str | None:
    """The artifact that a checkpoint was logged as, `project/name:alias`; `None` if it wasn't.

    Args:
        run: the run that wrote the checkpoint.
        checkpoint: the file, known by its SHA-256 wherever it lies.
    """
    names = _names(run)
    return names.get(sha256(checkpoint)) if names else None


def _experiment(trainer: L.Trainer) -> Any:
    """Rank 0's W&B run, if there is one."""
    found = (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))
    logger = next(found, None) if trainer.is_global_zero else None
    return None if logger is None else logger.experiment


def _names(run: RunDirectory) -> dict[str, str]:
    """Artifacts' `project/name:alias` by the SHA-256 of their checkpoint; a broken file is said."""
    try:
        names = json.loads(run.wandb_models.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        names = None
    if not isinstance(names, dict):
        say(f"{run.wandb_models} is broken, and what it held is left out")
        return {}
    return names


def _remember(run: RunDirectory, digest: str, name: str) -> None:
    write_text(run.wandb_models, json.dumps(_names(run) | {digest: name}, indent=2) + "\n")


def _epoch(path: Path) -> int:
    return int(path.stem.split("-")[1])


@contextmanager
def _survived() -> Iterator[None]:
    """A context whose errors are said: no upload ends a training."""
    try:
        yield
    except Exception as error:  # of W&B's some have no public name
        say(f"the checkpoint is no artifact ({first_line(error)})")
