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


@contextmanager
def job() -> Iterator[StopRequest]:
    """Listens to signals; where one has ended a run, it is queued again, or how to go on is said.

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
    return UnfinishedError(f"{what}; {_next(stop)}", code)


def _next(stop: StopRequest) -> str:
    """Sees to it that the run goes on, where that can be done, and says how it does."""
    number = slurm_job()
    if stop.how_to_go_on:
        return f"the same command with {stop.how_to_go_on} continues"
    if number is None:
        return "the same command continues"
    if not is_rank_zero():
        return "rank 0 queues the job again"
    return requeue(number)


def slurm_job() -> str | None:
    """The number by which Slurm knows this job, a task of an array too; `None` outside Slurm."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    number = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return number if re.fullmatch(r"\d+(_\d+)?", number) else None


def requeue(number: str) -> str:
    """Asks Slurm to start a job again, and says what came of it.

    In a container there may be no `scontrol`: then the exit code tells the script outside to ask.
    """
    by_script = f"the script is to do it (exit code {UNFINISHED})"
    if shutil.which("scontrol") is None:
        return f"there is no scontrol here to queue job {number} again: {by_script}"
    try:
        answer = subprocess.run(
            ["scontrol", "requeue", number],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol did not queue job {number} again ({error}): {by_script}"
    if answer.returncode:
        said = " ".join(answer.stderr.split())
        return f"scontrol did not queue job {number} again ({said}): {by_script}"
    return f"job {number} is queued again"
