"""Evaluations of a run, each as a Weights & Biases run of its own."""

from pathlib import Path
from typing import Any

from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.results import versions
from simclr_pl.run.yaml_file import read_config
from simclr_pl.tracking.artifacts import artifact_of
from simclr_pl.tracking.wandb import WandbChoice, failures, first_line, run_id, say, start
from simclr_pl.tracking.wandb_mode import Mode, resolve_mode
from simclr_pl.writing import printable


def log_evaluation(
    run: RunDirectory, protocol: str, numbers: dict[str, float], about: dict[str, Any], asked: Mode
) -> None:
    """Logs an evaluation as a W&B run, whose job type is the protocol's first word.

    Its project and group are those of the evaluated run, and its config has that run's recipe, so
    that W&B's table sorts evaluations by any option of the pretraining. It is linked to the
    artifact that the checkpoint was logged as, if any. The same evaluation done again continues the
    same W&B run. Failures of W&B are said and cost seconds: results/ has the numbers all the same.

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
        recipe = read_config(run.config) if run.config.is_file() else {}
        artifact = artifact_of(run, Path(about["checkpoint"]))
        name = f"{run_id(run)}-{about['dataset']}-{protocol}-{about['split']}"
        words = {
            "name": printable(f"{run.path.parent.name}/{run.path.name} {protocol}"),
            "job_type": protocol.partition("-")[0],
        }
        settings = {"console": "off", "reinit": "create_new"}
        experiment = start(run, _choice(recipe, asked), name, words, **settings)
        if experiment is None:
            return
        experiment.config.update(
            {
                **about, "checkpoint": str(about["checkpoint"]), "protocol": protocol,
                "pretraining": run_id(run), "recipe": recipe, "artifact": artifact,
                "versions": versions(),
            }
        )  # fmt: skip
        if artifact is not None and not experiment.offline:  # offline its name has to do
            experiment.use_artifact(artifact)
        experiment.summary.update(numbers)
        experiment.finish()
    except failures() as error:
        say(f"no run for {protocol} ({first_line(error)})")


def _choice(recipe: dict[str, Any], asked: Mode) -> WandbChoice:
    """The project and group that a recipe names, in the mode that is asked for now."""
    there = recipe.get("wandb")
    there = there if isinstance(there, dict) else {}
    named = {name: there[name] for name in ("project", "group") if there.get(name)}
    return WandbChoice(mode=asked, **named)
