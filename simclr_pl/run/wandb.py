"""Weights & Biases without an account, a prompt or a hang."""

import json
import math
import netrc
import os
import sys
import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.metrics import read_metrics

Mode = Literal["auto", "online", "offline", "off"]

PROJECT = "simclr_pl"
"""Of W&B, where nothing else is said."""

PATIENCE = 20.0
"""Seconds to wait for a server."""


def logged_in() -> bool:
    """Whether an API key is at hand, in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(address).hostname or ""
    places = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in places:
        try:
            if place and netrc.netrc(place).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def resolve_mode(asked: Mode) -> Mode:
    """`online`, `offline` or `off`: what was asked for, else WANDB_MODE, else whether logged in."""
    if asked != "auto":
        return asked
    named = os.environ.get("WANDB_MODE", "")
    known: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "off"}
    return known.get(named, "online" if logged_in() else "offline")


def build_logger(mode: Mode, run: RunDirectory, project: str, name: str) -> Any:
    """A logger whose run is kept in the run directory, or `None` when it is off.

    The run's id is kept beside it, so that a resumed run continues the same W&B run.

    Args:
        mode: from `resolve_mode`.
        run: the run directory.
        project: of W&B.
        name: of the run there.
    """
    if mode == "off":
        return None
    if not run.wandb_id.exists():
        run.wandb_id.parent.mkdir(parents=True, exist_ok=True)
        run.wandb_id.write_text(uuid.uuid4().hex[:8] + "\n")
    import wandb  # late: it takes a second

    run.path.mkdir(parents=True, exist_ok=True)
    try:
        experiment = _start(mode, run, project, name=name)
    except wandb.Error as error:
        if mode == "offline":
            raise
        sys.stdout.write(
            f"Weights & Biases: no connection ({_first_line(error)}), so this run is offline\n"
        )
        wandb.teardown()  # its service remembers the run that failed
        experiment = _start("offline", run, project, name=name)
    # A resumed run counts its own steps from 0 again: the trainer's are the axis that means
    # something.
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=experiment, save_dir=run.path)


def append_to_summary(run: RunDirectory, numbers: dict[str, float], asked: Mode = "auto") -> None:
    """Puts numbers into the summary of a run's W&B run, if it has one and W&B isn't off.

    Online where somebody is logged in and the run is there; else as one more offline part of it,
    which `wandb sync` uploads behind the others. Nobody is asked anything, and what W&B cannot do
    is said and costs seconds: the numbers are in results/ all the same.

    Args:
        run: the run directory.
        numbers: by name, as in `linear/test_top1`.
        asked: online, offline, off, or auto.
    """
    mode = resolve_mode(asked)
    if mode == "off" or not run.wandb_id.is_file():
        return
    try:
        _remember(run, numbers)
        # Without a key W&B would ask for one.
        online = mode == "online" and logged_in() and _append_online(run, numbers)
        if not online:
            part = _start("offline", run, PROJECT, console="off", reinit="create_new")
            part.summary.update(numbers)
            part.finish()
    except _failures() as error:
        sys.stdout.write(f"Weights & Biases: summary left as it was ({_first_line(error)})\n")


def _append_online(run: RunDirectory, numbers: dict[str, float]) -> bool:
    """Edits the run on the server: to continue it would change its state, machine and log.

    Returns:
        Whether it was there to be edited.
    """
    import wandb

    try:
        there = wandb.Api(timeout=math.ceil(PATIENCE)).run(f"{PROJECT}/{_id(run)}")
        summary: Any = there.summary
        summary.update(numbers)
    except _failures() as error:
        sys.stdout.write(f"Weights & Biases: not online ({_first_line(error)})\n")
        return False
    sys.stdout.write(f"Weights & Biases: added to the summary of {there.url}\n")
    return True


def _failures() -> tuple[type[Exception], ...]:
    """What W&B raises: errors of its own, in older versions others, and those of the system."""
    import wandb

    return (wandb.Error, ValueError, OSError)


def _start(
    mode: Mode, run: RunDirectory, project: str, name: str | None = None, **settings: Any
) -> Any:
    """Starts the directory's W&B run, or a further part of it.

    Args:
        mode: online or offline.
        run: with an id.
        project: of W&B.
        name: of the run there (default: as it is).
        settings: further ones of W&B.
    """
    import wandb

    # We say in one line what it says in ten; a server that doesn't answer costs seconds.
    quick = wandb.Settings(silent=True, init_timeout=PATIENCE, **settings)
    # Resumed when offline too: an upload then goes on behind the parts uploaded before it.
    about: dict[str, Any] = {"id": _id(run), "mode": mode, "resume": "allow"}
    experiment = wandb.init(project=project, name=name, dir=run.path, settings=quick, **about)
    if mode == "offline":
        # Each part's summary replaces that of the parts uploaded before it: it has to be whole.
        experiment.summary.update(_summary_so_far(run))
        sys.stdout.write(
            f"Weights & Biases: offline; to upload: wandb sync {run.path}/wandb/offline-run-*\n"
        )
    return experiment


def _remember(run: RunDirectory, numbers: dict[str, float]) -> None:
    """Keeps what was appended, for parts of the run to come."""
    temporary = run.wandb_summary.with_suffix(".tmp")
    temporary.write_text(json.dumps(_remembered(run) | numbers, indent=2) + "\n")
    temporary.replace(run.wandb_summary)


def _remembered(run: RunDirectory) -> dict[str, float]:
    found: dict[str, float] = {}
    if run.wandb_summary.is_file():
        found = json.loads(run.wandb_summary.read_text())
    return found


def _summary_so_far(run: RunDirectory) -> dict[str, float]:
    """The last of every number logged, named as W&B has them, and what was appended besides."""
    numbers = _remembered(run)
    for row in read_metrics(run.metrics) if run.metrics.is_file() else []:
        numbers |= {name: float(value) for name, value in row.items()}
    if "step" in numbers:
        numbers["trainer/global_step"] = numbers.pop("step")
    return numbers


def _id(run: RunDirectory) -> str:
    return run.wandb_id.read_text().strip()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
