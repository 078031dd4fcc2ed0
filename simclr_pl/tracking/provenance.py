"""Code version, package versions and data fingerprint that are recorded with a run."""

import math
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L

import simclr_pl
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.model.objective import NTXent
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.images.fingerprint import fingerprint
from simclr_pl.run.derived import derived
from simclr_pl.run.results import versions


def provenance(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """The provenance of a run that is about to take its first step, as plain values.

    Args:
        trainer: with everything set up.
        module: the module that is trained; a pretraining adds the table of derived values, and
            NT-Xent the number of negatives and the loss at chance.
    """
    found: dict[str, Any] = {
        "git_commit": git_commit(),
        "versions": versions() | {"wandb": version("wandb")},
        "world_size": trainer.world_size,
    }
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, ContrastiveDataModule):
        found["data_fingerprint"] = fingerprint(data.splits)
        if isinstance(module, SimCLR):
            if isinstance(module.objective, NTXent):
                found["negatives_per_anchor"] = 2 * data.batch_size - 2
                found["chance_loss"] = math.log(2 * data.batch_size - 1)
            found["derived"] = derived(trainer, module, data)
    return found


def git_commit(folder: Path = Path(simclr_pl.__file__).parent) -> str | None:
    """The commit that a folder's files are of, with `-dirty` behind it where they differ.

    Args:
        folder: by default this package's; where it was installed it is in no repository.

    Returns:
        40 hexadecimal digits, or `None`: no git, no repository, or one that knows no such files.
    """
    try:
        if not _git(folder, "ls-files", "."):
            return None
        dirty = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
        return _git(folder, "rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return answer.stdout.strip()
