"""The run directory: where everything of one run is kept, and who may write into it."""

import os
import shutil
import time
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from simclr_pl.core.errors import UserError
from simclr_pl.core.paths import expanded
from simclr_pl.images.workers.unreadable import LEFT_OUT
from simclr_pl.run.lock import RunLock
from simclr_pl.writing import cannot_write, sweep

_HANDED_ON = "SIMCLR_PL_RUN_DIR"
"""Ranks that Lightning starts run the command again: rank 0's choice reaches them in here."""


def is_rank_zero() -> bool:
    """Whether this process is global rank 0, also before a process group is up."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


class RunDirectory:
    """Paths of a run, and the rules: one run a directory, and nothing left of one that never began.

    Args:
        path: the directory; need not exist.
        option: the command-line option that sets this directory, quoted in errors.
    """

    def __init__(self, path: str | Path, option: str = "--run_dir") -> None:
        path = expanded(path)
        self.path, self.option = path, option
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.last_checkpoint = path / "checkpoints" / "last.ckpt"
        self.seen = path / "checkpoints" / "data.npz"
        self.pictures = path / "pictures"
        self.results = path / "results"
        self.left_out = path / LEFT_OUT
        self.wandb_id = path / "wandb_id.txt"
        self.wandb_models = path / "wandb_models.json"
        self._lock = RunLock(path / ".lock", option)
        self._claimed = False
        self._found: set[Path] = set()
        self._trained: dict[Path, int] = {}
        self._new_folders: list[Path] = []

    @property
    def holds_run(self) -> bool:
        """Whether a run has written here."""
        return self.config.exists() or self.metrics.exists() or self.last_checkpoint.exists()

    def check_free(self, *, resume: bool) -> None:
        """Checks on rank 0, before anything is written, that a run may have the directory.

        Raises:
            UserError: the directory holds a run, and `resume` wasn't asked for.
        """
        if is_rank_zero() and self.holds_run and not resume:
            raise UserError(
                f"{self.path} already holds a run: add --resume to continue it, "
                f"or give another {self.option}"
            )

    def claim(self, *, resume: bool) -> None:
        """Makes the directory this run's own, until `release`; rank 0 alone does so.

        Raises:
            UserError: the directory holds a run and `resume` wasn't asked for, another process
                trains in it, or it cannot be made.
        """
        if not is_rank_zero():
            return
        self.check_free(resume=resume)
        self._new_folders = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made a run directory: {error}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise UserError(f"{self.path} cannot be written: give another {self.option}")
        self._found = set(self.path.iterdir())
        self._lock.take()
        self.check_free(resume=resume)  # by now
        for path in (self.last_checkpoint.with_name("*"), self.metrics, self.config):
            sweep(path.parent, path.name)
        self._trained = self._checkpoints()
        self._claimed = True

    def release(self) -> None:
        """Lets others have the directory."""
        self._lock.release()

    def discard(self) -> None:
        """Removes what `claim` and a run that didn't reach its first step have made.

        Everything stays where a checkpoint has been written since `claim`.
        """
        if self._claimed and self._checkpoints() == self._trained:
            self._discard()
        self.release()

    def _discard(self) -> None:
        for entry in set(self.path.iterdir()) - self._found:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        for folder in self._new_folders:
            try:
                folder.rmdir()
            except OSError:  # another run has moved in
                break

    def _checkpoints(self) -> dict[Path, int]:
        """Checkpoints anywhere in the directory, and when each was written, in ns."""
        return {path: path.stat().st_mtime_ns for path in self.path.rglob("*.ckpt")}


def file_to_write(path: str) -> Path:
    """The path of a file that will be written when the work for it is done; its folder is made.

    Raises:
        UserError: the file cannot be written, which is better known before the work.
    """
    target = expanded(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(target, error, "--out") from error
    if target.is_dir():
        raise UserError(f"{path} is a folder: give a file as --out")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{path} cannot be written (Permission denied): give another --out")
    return target


def run_of(checkpoint: Path) -> RunDirectory | None:
    """The run that a checkpoint lies in: in its folder for checkpoints, or beside config.yaml."""
    folder = expanded(checkpoint).absolute().parent
    found = (RunDirectory(place) for place in (folder.parent, folder))
    return next((run for run in found if run.config.is_file()), None)


def choose_directory(wanted: str | None, config_name: str) -> RunDirectory:
    """The directory asked for, or `runs/<config name>/<time>`.

    Args:
        wanted: what the user gave.
        config_name: the first configuration's name.
    """
    if wanted is None and not is_rank_zero():
        wanted = os.environ.get(_HANDED_ON)
    if wanted is None:
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        wanted, count = f"runs/{config_name}/{stamp}", 1
        while Path(wanted).exists():  # two runs in one second
            count += 1
            wanted = f"runs/{config_name}/{stamp}_{count}"
    if is_rank_zero():
        os.environ[_HANDED_ON] = str(expanded(wanted))
    return RunDirectory(expanded(wanted))
