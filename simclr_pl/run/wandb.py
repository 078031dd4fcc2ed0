"""Weights & Biases without an account, a prompt or a hang."""

import netrc
import os
import sys
import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

from simclr_pl.run.directory import RunDirectory

Mode = Literal["auto", "online", "offline", "off"]

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

    def start(mode: Any) -> Any:
        return wandb.init(
            project=project,
            name=name,
            id=run.wandb_id.read_text().strip(),
            dir=run.path,
            mode=mode,
            resume="allow" if mode == "online" else None,
            # We say in one line what it says in ten; a server that doesn't answer costs seconds.
            settings=wandb.Settings(silent=True, init_timeout=PATIENCE),
        )

    try:
        experiment = start(mode)
    except wandb.Error as error:
        if mode == "offline":
            raise
        why = str(error).splitlines()[0]
        sys.stdout.write(f"Weights & Biases: no connection ({why}), so this run is offline\n")
        mode = "offline"
        wandb.teardown()  # its service remembers the run that failed
        experiment = start(mode)
    if mode == "offline":
        sys.stdout.write(
            f"Weights & Biases: offline; to upload: wandb sync {run.path}/wandb/offline-run-*\n"
        )
    # A resumed run counts its own steps from 0 again: the trainer's are the axis that means
    # something.
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=experiment, save_dir=run.path)
