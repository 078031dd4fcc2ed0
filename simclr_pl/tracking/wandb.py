"""Weights & Biases without an account, a prompt or a hang."""

import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger

from simclr_pl.core.errors import UserError
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.metrics import read_metrics
from simclr_pl.run.unfinished import UnfinishedError
from simclr_pl.tracking.wandb_mode import Mode, default_project, logged_in, resolve_mode
from simclr_pl.writing import printable, write_text

SERVER_TIMEOUT_S = 20.0
"""Seconds to wait for a server."""

FINISH_TIMEOUT_S = 60.0
"""Seconds that the upload may take at a run's end; twenty times as many with models."""

FLUSH_S = 1.0
"""Seconds of an offline run that a kill may cost; by itself W&B writes every 15."""


@dataclass(frozen=True)
class WandbChoice:
    """Weights & Biases. `--wandb MODE` is short for `--wandb.mode MODE`.

    Args:
        mode: online, offline, off, or auto: online when logged in, else offline.
        project: of W&B (default: WANDB_PROJECT, else simclr_pl).
        group: under which runs are shown together.
        tags: words to find the run by, as `a,b` or a list.
        notes: a sentence on what the run is for.
        log_model: checkpoints as artifacts: true, or a number N for every N epochs.
        keep: how many of a run's artifacts are kept, the last ones.

    Raises:
        UserError: a number out of its range.
    """

    mode: Mode = "auto"
    project: str = field(default_factory=default_project)
    group: str | None = None
    tags: list[str] | str | None = None
    notes: str | None = None
    log_model: bool | int = False
    keep: int = 3

    def __post_init__(self) -> None:
        if self.log_model < 0:
            raise UserError(f"wandb.log_model is {self.log_model}, but must be 0 (off) or more")
        if self.keep < 1:
            raise UserError(f"wandb.keep is {self.keep}, but must be at least 1")


def build_logger(run: RunDirectory, choice: WandbChoice, job: str) -> WandbLogger | None:
    """A logger whose run is kept in the run directory, or `None` when W&B is off, or out of order.

    The run's id is kept beside it, so that a resumed run continues the same W&B run. In a sweep it
    is the one that the agent has been given.

    Args:
        run: the run directory.
        choice: mode, project, and what is said of the run.
        job: its type there, as in `pretrain`.
    """
    if resolve_mode(choice.mode) == "off":
        return None
    given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    if given or not run_id(run):
        run.wandb_id.parent.mkdir(parents=True, exist_ok=True)
        write_text(run.wandb_id, (given or uuid.uuid4().hex[:8]) + "\n")
    name = os.environ.get("WANDB_NAME") or printable(f"{run.path.parent.name}/{run.path.name}")
    about = {"name": name, "job_type": job}
    patience = FINISH_TIMEOUT_S * (20 if choice.log_model else 1)
    experiment = start(run, choice, run_id(run), about, finish_timeout=patience)
    if experiment is None:
        return None
    # A resumed run counts its own steps from 0 again: the trainer's are the axis that means
    # something. Every row has the epoch too. The summary is the last value: nothing says otherwise.
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("epoch", step_metric="trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return _Logger(experiment=experiment, save_dir=run.path)


class _Logger(WandbLogger):
    """Lightning's, which goes quiet where W&B's own process has died: a training outlives it.

    The system may have ended it for want of memory; and a SIGTERM that Slurm sends to every process
    of a job ends it before the run has taken its last step.
    """

    _is_lost = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row, as long as there is somebody to tell it."""
        if self._is_lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # W&B has no public name for some of what it raises here
            self._is_lost = True
            say(f"no more is logged there ({first_line(error)}); metrics.csv has all numbers")


def start(
    run: RunDirectory, choice: WandbChoice, name: str, about: dict[str, Any], **settings: Any
) -> Any:
    """Starts a W&B run in the run directory, or goes on with it: online if that can be.

    Nobody is asked anything, and no failure of W&B's ends a training.

    Args:
        run: the run directory.
        choice: mode, project, group, tags and notes.
        name: the W&B run's id.
        about: further arguments of `wandb.init`.
        settings: of W&B; those that its version doesn't know are left out.

    Returns:
        The W&B run, or `None` where there can't be one, which is said.
    """
    import wandb  # late: it takes a second

    if (path := printable(str(run.path))) != str(run.path):
        say(f"not logged there ({path} has bytes in its name that are no UTF-8)")
        return None
    mode = resolve_mode(choice.mode)
    run.path.mkdir(parents=True, exist_ok=True)
    tags = choice.tags.split(",") if isinstance(choice.tags, str) else choice.tags
    words = {"group": choice.group, "notes": choice.notes, "tags": [t.strip() for t in tags or []]}
    # Resumed when offline too: an upload then goes on behind the parts uploaded before it.
    about = {"id": name, "project": choice.project, "resume": "allow"} | about
    about |= {key: value for key, value in words.items() if value}
    settings = {
        "silent": True, "init_timeout": SERVER_TIMEOUT_S, "finish_timeout": FINISH_TIMEOUT_S,
        "finish_timeout_raises": True, "x_transaction_log_flush_interval": FLUSH_S, **settings,
    }  # fmt: skip
    known = {k: v for k, v in settings.items() if k in wandb.Settings.model_fields}

    def begin(how: Literal["online", "offline"]) -> Any:
        # The setting of the first name comes too late for the login; of the second's words W&B
        # takes fewer than we do.
        with silent(WANDB_MODE=how):
            return wandb.init(dir=run.path, mode=how, settings=wandb.Settings(**known), **about)

    if mode == "online":
        try:
            if logged_in():  # without a key W&B would ask for one
                return begin(mode)
            reason = "nobody is logged in"
        except failures() as error:
            reason = first_line(error)
            wandb.teardown()  # its service remembers the run that failed
        say(f"no connection ({reason}), so this run is offline")
    try:
        # Each part's summary replaces that of the parts uploaded before: it has to be whole.
        summary = _summary_so_far(run) if name == run_id(run) else {}
        experiment = begin("offline")
        experiment.summary.update(summary)
    except failures() as error:
        say(f"not logged there ({first_line(error)})")
        return None
    say(f"offline; to upload: wandb sync {run.path}/wandb/offline-run-*")
    return experiment


@contextmanager
def silent(**variables: str) -> Iterator[None]:
    """A context in which W&B says nothing: we say in one line what it says in ten.

    W&B sends this process's arguments to its own one, which takes UTF-8 alone: others are escaped.

    Args:
        variables: further environment variables that hold in the context.
    """
    arguments, variables = sys.argv, {"WANDB_SILENT": "true", **variables}
    before = {name: os.environ.get(name) for name in variables}
    sys.argv = [printable(each) for each in arguments]
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.argv = arguments
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def end_run(run: RunDirectory, error: BaseException | None) -> None:
    """Ends this process's W&B run, if it has one; what isn't uploaded by then is said.

    Args:
        run: the run directory.
        error: what it ended in, if it did; one that was told to stop hasn't failed.
    """
    experiment = getattr(sys.modules.get("wandb"), "run", None)
    if experiment is None:
        return
    try:
        if isinstance(error, UnfinishedError):
            experiment.mark_preempting()
        _finish(experiment, int(error is not None), hurry=isinstance(error, UnfinishedError))
    except Exception as failure:  # as in `log_metrics`
        parts = f"{run.path}/wandb/*run-*"
        say(f"not all is uploaded ({first_line(failure)}); to upload: wandb sync {parts}")
        if not isinstance(failure, TimeoutError):  # its process has died, and a new run needs one
            with suppress(Exception):
                sys.modules["wandb"].teardown()


def _finish(experiment: Any, code: int, *, hurry: bool) -> None:
    """Ends a W&B run.

    Args:
        experiment: the run.
        code: its exit code.
        hurry: leave models that are still on their way: a cluster kills what stays for long after
            its signal, before the job is queued again.

    Raises:
        TimeoutError: not all was uploaded in time.
    """
    if not hurry:
        experiment.finish(exit_code=code)
        return
    ended: Future[None] = Future()

    def finish() -> None:
        try:
            ended.set_result(experiment.finish(exit_code=code))
        except Exception as error:
            ended.set_exception(error)

    Thread(target=finish, daemon=True).start()  # an executor's would be waited for at the end
    ended.result(timeout=FINISH_TIMEOUT_S)


def _summary_so_far(run: RunDirectory) -> dict[str, float]:
    """The last of every number logged, named as W&B has them."""
    numbers: dict[str, float] = {}
    for row in read_metrics(run.metrics) if run.metrics.is_file() else []:
        numbers |= {name: float(value) for name, value in row.items()}
    if "step" in numbers:
        numbers["trainer/global_step"] = numbers.pop("step")
    return numbers


def run_id(run: RunDirectory) -> str:
    """The id of the directory's W&B run; empty without a run or with an empty file."""
    try:
        name = run.wandb_id.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return name if name.isprintable() else ""


def failures() -> tuple[type[Exception], ...]:
    """Errors to expect of W&B: its own, older versions' `ValueError`, ours, and the system's."""
    import wandb

    return (wandb.Error, UserError, ValueError, OSError)


def first_line(error: Exception) -> str:
    """The first line of an error's message, else its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def say(line: str) -> None:
    """One line on W&B, for a person."""
    sys.stdout.write(f"Weights & Biases: {line}\n")
