"""A Slurm job: its number, its restarts, and how it is queued again."""

import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import lightning as L

from simclr_pl.run.unfinished import UNFINISHED

ANSWER_S = 30.0
"""Seconds that Slurm has to answer."""

BY_SCRIPT = f"the script is to do it (exit code {UNFINISHED})"


def slurm_job() -> str | None:
    """The number by which Slurm knows this job, a task of an array too; `None` outside Slurm."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    number = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return number if re.fullmatch(r"\d+(_\d+)?", number) else None


def requeue(number: str) -> str | None:
    """Asks Slurm to start a job again, and returns a sentence where that failed.

    Slurm ends what is left of the job as soon as it has queued it: there may be no return.
    """
    ask = ["scontrol", "requeue", number]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol did not queue job {number} again ({error}): {BY_SCRIPT}"
    if answer.returncode:
        said = " ".join(answer.stderr.split())
        return f"scontrol did not queue job {number} again ({said}): {BY_SCRIPT}"
    return None


class Restarts(L.Callback):
    """Restarts of a Slurm job since it made its last step, counted in the checkpoint.

    Args:
        checkpoint: the one that the run goes on from, if there is one.
    """

    def __init__(self, checkpoint: Mapping[str, Any] | None) -> None:
        self._job, self._count = slurm_job(), restart_count()
        found = (checkpoint or {}).get("callbacks", {}).get(self.state_key, {})
        # Of another job nothing is known: all restarts of this one were in vain.
        self._last = int(found["restart"]) if found and found["job"] == self._job else 0

    @property
    def in_vain(self) -> int:
        """Restarts since the one that made the last step; 0 where this one has made one."""
        return self._count - self._last

    def on_train_batch_end(self, *args: Any) -> None:
        """This restart leads somewhere."""
        self._last = self._count

    def state_dict(self) -> dict[str, Any]:
        """The job, and its restart that made the last step; nothing outside Slurm."""
        return {} if self._job is None else {"job": self._job, "restart": self._last}


def restart_count() -> int:
    """How often Slurm has started this job again; 0 outside Slurm."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0
