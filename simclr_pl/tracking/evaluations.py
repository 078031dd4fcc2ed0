"""What became of a run, told to Weights & Biases: in its summary, and as a run of its own."""

import json
import math
from pathlib import Path
from typing import Any

from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.results import versions
from simclr_pl.run.yaml_file import read_config
from simclr_pl.tracking.artifacts import artifact_of
from simclr_pl.tracking.wandb import (
    PATIENCE,
    WandbChoice,
    failures,
    first_line,
    kept,
    run_id,
    say,
    silent,
    start,
)
from simclr_pl.tracking.wandb_mode import Mode, logged_in, resolve_mode
from simclr_pl.writing import printable, write_text


def recorded_choice(run: RunDirectory, asked: Mode) -> WandbChoice:
    """Project and group of a run, from its config.yaml, in the mode that is asked for now."""
    there: Any = None
    if run.config.is_file():
        there = read_config(run.config).get("wandb")
    there = there if isinstance(there, dict) else {}
    named = {name: there[name] for name in ("project", "group") if there.get(name)}
    return WandbChoice(mode=asked, **named)


def tell(
    run: RunDirectory,
    protocol: str,
    numbers: dict[str, float],
    about: dict[str, Any],
    asked: Mode = "auto",
) -> None:
    """Both: the numbers in the run's summary, and as a W&B run of their own.

    Args:
        run: the directory of the run that was evaluated.
        protocol: as in `linear-lbfgs`.
        numbers: by name, as in `linear/test_top1`.
        about: what the numbers hang on: `checkpoint`, `split`, `dataset`, and more.
        asked: online, offline, off, or auto.
    """
    append_to_summary(run, numbers, asked)
    log_evaluation(run, protocol, numbers, about, asked)


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
    if mode == "off" or not run_id(run):
        return
    try:
        _remember(run, numbers)
        choice = recorded_choice(run, "offline")
        online = mode == "online" and logged_in() and _append_online(run, choice.project, numbers)
        if not online:
            part = start(run, choice, run_id(run), {}, console="off", reinit="create_new")
            if part is not None:
                part.summary.update(numbers)
                part.finish()
    except failures() as error:
        say(f"summary left as it was ({first_line(error)})")


def log_evaluation(
    run: RunDirectory, protocol: str, numbers: dict[str, float], about: dict[str, Any], asked: Mode
) -> None:
    """The same numbers as a W&B run of their own, whose job type is the protocol's first word.

    It is linked to the artifact that the checkpoint was logged as, if it was. Evaluated again, the
    same W&B run goes on.

    Args:
        run: the directory of the run that is evaluated; nothing is done where W&B doesn't know it.
        protocol: as in `linear-lbfgs`.
        numbers: by name, as in `linear/test_top1`.
        about: what goes into the W&B run's config, `checkpoint`, `split` and `dataset` among it.
        asked: online, offline, off, or auto.
    """
    if resolve_mode(asked) == "off" or not run_id(run):
        return
    try:
        choice = recorded_choice(run, asked)
        artifact = artifact_of(run, Path(about["checkpoint"]))
        name = f"{run_id(run)}-{about['dataset']}-{protocol}-{about['split']}"
        config = {
            **about, "checkpoint": str(about["checkpoint"]), "protocol": protocol,
            "pretraining": run_id(run), "artifact": artifact, "versions": versions(),
        }  # fmt: skip
        words = {
            "name": printable(f"{run.path.parent.name}/{run.path.name} {protocol}"),
            "job_type": protocol.partition("-")[0],
        }
        quiet = {"console": "off", "reinit": "create_new"}
        experiment = start(run, choice, name, words, again=True, **quiet)
        if experiment is None:
            return
        experiment.config.update(config)
        if artifact is not None and not experiment.offline:  # offline its name has to do
            experiment.use_artifact(artifact)
        experiment.summary.update(numbers)
        experiment.finish()
    except failures() as error:
        say(f"no run for {protocol} ({first_line(error)})")


def _append_online(run: RunDirectory, project: str, numbers: dict[str, float]) -> bool:
    """Edits the run on the server: to continue it would change its state, machine and log.

    Returns:
        Whether it was there to be edited.
    """
    import wandb

    try:
        with silent():
            there = wandb.Api(timeout=math.ceil(PATIENCE)).run(f"{project}/{run_id(run)}")
            summary: Any = there.summary
            summary.update(numbers)
    except failures() as error:
        say(f"not online ({first_line(error)})")
        return False
    say(f"added to the summary of {there.url}")
    return True


def _remember(run: RunDirectory, numbers: dict[str, float]) -> None:
    """Keeps what was appended, for parts of the run to come."""
    known = kept(run.wandb_summary)
    write_text(run.wandb_summary, json.dumps(known | numbers, indent=2) + "\n")
