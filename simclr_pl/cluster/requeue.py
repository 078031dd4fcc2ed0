"""A command that a cluster may stop, and start again: what it says, and how it is queued again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from simclr_pl.cluster.signals import StopRequest
from simclr_pl.cluster.slurm import BY_SCRIPT, requeue, slurm_job
from simclr_pl.run.directory import is_rank_zero
from simclr_pl.run.unfinished import GIVEN_UP, UNFINISHED, UnfinishedError

MOST_RESTARTS = 3
"""Times that Slurm may start a job again without a new step, before it is given up."""


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
    if stop.restarts is not None and stop.restarts.in_vain >= MOST_RESTARTS:  # as on all ranks
        return UnfinishedError(
            f"{what}; job {number} was started {stop.restarts.in_vain + 1} times without a new "
            "step, and is not queued again: give it more time (--time), or see above what it "
            "spends it on",
            GIVEN_UP,
        )
    if not is_rank_zero():
        return UnfinishedError(f"{what}; rank 0 has the job queued again", code)
    if shutil.which("scontrol") is None:  # in a container: the exit code tells the script outside
        by = f"there is no scontrol here to queue job {number} again: {BY_SCRIPT}"
        return UnfinishedError(f"{what}; {by}", code)
    asked = f"{what}; Slurm is asked to queue job {number} again"
    return UnfinishedError(asked, code, lambda: requeue(number))
