"""Reads W&B's offline runs back, as W&B itself does."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

from commands import called


def records(directory: Path) -> list[list[dict[str, Any]]]:
    """Everything in each of a directory's offline runs, read by W&B's own program."""
    found = []
    for file in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        lines = _inspected(file, file.stat().st_mtime_ns).splitlines()
        found.append([json.loads(line) for line in lines])
    return found


@functools.cache
def _inspected(file: Path, changed: int) -> str:
    """What the program says of a file, which takes it three seconds, as it was changed last."""
    program = Path(sys.executable).with_name("wandb")
    command = [program, "leet", "inspect", "--json", file]
    answer = called(*command, timeout=60, check=True)
    return answer.stdout


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged rows of a run."""
    return [record["history"]["item"] for record in found if record["type"] == "history"]


def begun(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What W&B was told of a run when it began: id, project, group, job type, tags, notes."""
    (run,) = [record["run"] for record in found if record["type"] == "run"]
    return dict(run)


def artifacts(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Artifacts that a run has logged, in their order, with their manifests."""
    return [record["artifact"] for record in found if record["type"] == "artifact"]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary that a part of a run ends with, without what W&B adds of itself."""
    whole: dict[str, Any] = {}
    for record in found:
        if record["type"] == "summary":
            whole |= record["summary"].get("update", {})
    return {name: value for name, value in whole.items() if not name.startswith("_")}


def recipe(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration that a run was given."""
    config: dict[str, Any] = {}
    for record in found:
        if record["type"] == "config":
            config |= record["config"].get("update", {})
    return config
