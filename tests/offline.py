"""Offline runs of Weights & Biases, read back by its own program."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import environment


def records(directory: Path) -> list[list[dict[str, Any]]]:
    """Everything in each of a directory's offline runs."""
    program = Path(sys.executable).with_name("wandb")
    found = []
    for file in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        command = [program, "leet", "inspect", "--json", file]
        answer = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=60, check=True
        )
        found.append([json.loads(line) for line in answer.stdout.splitlines()])
    return found


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged rows of a run."""
    return [record["history"]["item"] for record in found if record["type"] == "history"]


def recipe(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration that a run was given."""
    config: dict[str, Any] = {}
    for record in found:
        if record["type"] == "config":
            config |= record["config"].get("update", {})
    return config
