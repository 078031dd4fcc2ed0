"""A command that a cluster may stop, and start again: what it says, and how it is queued again."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from simclr_pl.errors import UNFINISHED, UnfinishedError
from simclr_pl.run.directory import is_rank_zero
from simclr_pl.run.stop import StopRequest

PATIENCE = 30.0
"""Seconds that Slurm has to answer."""

BY_SCRIPT = f"the script is to do it (exit code {UNFINISHED})"


@contextmanager
def job() -> Iterator[StopRequest]:
    """Listens to signals; where one has ended a run, says how it goes on, or has it queued again.

    Raises:
        UnfinishedError: a signal has ended it.
    """
    stop = StopRequest()
    with stop.listening():
        try:
            yield stop
        except KeyboardInterrupt:
            if stop.signal is None or stop.training:
                raise
            raise _unfinished(f"stopped by {stop.name} before the first step", stop) from None
        except UnfinishedError as error:
            raise _unfinished(str(error), stop) from None


def _unfinished(what: str, stop: StopRequest) -> UnfinishedError:
    # Launchers kill the rest as soon as one rank ends with an error: rank 0 speaks for all of them.
    code = UNFINISHED if is_rank_zero() or not stop.agreed else 0
    number = slurm_job()
    if stop.how_to_go_on:
        return UnfinishedError(f"{what}; the same command with {stop.how_to_go_on} continues", code)
    if number is None:
        return UnfinishedError(f"{what}; the same command continues", code)
    if not is_rank_zero():
        return UnfinishedError(f"{what}; rank 0 has the job queued again", code)
    if shutil.which("scontrol") is None:  # in a container: the exit code tells the script outside
        by = f"there is no scontrol here to queue job {number} again: {BY_SCRIPT}"
        return UnfinishedError(f"{what}; {by}", code)
    asked = f"{what}; Slurm is asked to queue job {number} again"
    return UnfinishedError(asked, code, lambda: requeue(number))


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
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol did not queue job {number} again ({error}): {BY_SCRIPT}"
    if answer.returncode:
        said = " ".join(answer.stderr.split())
        return f"scontrol did not queue job {number} again ({said}): {BY_SCRIPT}"
    return None
