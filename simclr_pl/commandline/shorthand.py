"""What a person writes in short: `--run_dir RUN` for a run's configuration, `--wandb off`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simclr_pl.core.errors import UserError
from simclr_pl.run.directory import RunDirectory, run_of
from simclr_pl.run.yaml_file import load_yaml

DOORS = (
    "model.encoder", "model.objective", "model.optimizer", "model.schedule",
    "data.dataset", "data.views",
)  # fmt: skip
"""Options that take a name, or a class of one's own with arguments."""


def spelled_out(args: list[str]) -> list[str]:
    """`validate --run_dir RUN` means that run's configuration and last checkpoint.

    For `bench`, which trains anew, the configuration alone.

    Args:
        args: command and options, as on the command line.

    Raises:
        UserError: a directory without a run.
    """
    args = [part for arg in args for part in _split_equals(arg)]
    command, *rest = args
    if command == "fit" or rest[-1:] == ["--run_dir"]:
        return args
    if "--run_dir" not in rest:
        return [command, *_own_config(rest), *rest]
    run = RunDirectory(Path(rest[rest.index("--run_dir") + 1]))
    if not run.config.is_file():
        raise UserError(f"{run.path} holds no run: give the directory of a run as --run_dir")
    if command != "bench" and not any(a.startswith("--ckpt_path") for a in rest):
        rest = [*rest, "--ckpt_path", str(run.last_checkpoint)]
    return [command, "--config", str(run.config), *rest]


def with_wandb_mode(args: list[str]) -> list[str]:
    """`--wandb off` is `--wandb.mode off`."""
    return [re.sub(r"^--wandb(?==|$)", "--wandb.mode", arg) for arg in args]


def without_door_arguments(args: list[str]) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """A command line without `--model.optimizer.lr 0.1` and its like, and these.

    Args:
        args: command and options.

    Returns:
        What is left, and (door, argument, value) of each that was taken out.
    """
    rest, found, words = [], [], iter(args)
    for arg in words:
        option, equals, value = arg.partition("=")
        door = next((door for door in DOORS if option.startswith(f"--{door}.")), None)
        if door is None:
            rest.append(arg)
            continue
        name = option.removeprefix(f"--{door}.").removeprefix("init_args.")
        if not equals:
            value = next(words, "")
        found.append((door, name, load_yaml(value)))
    return rest, found


def add_door_argument(config: Any, door: str, name: str, value: Any) -> None:
    """Gives what was chosen at a door one more argument.

    Args:
        config: of a command.
        door: one of `DOORS`.
        name: the argument's, or `class_path`.
        value: its value.
    """
    chosen = config[door]
    whole = dict(chosen) if isinstance(chosen, dict) else {"class_path": chosen}
    if name == "class_path":
        config[door] = {**whole, "class_path": value}
    else:
        config[door] = {**whole, "init_args": {**(whole.get("init_args") or {}), name: value}}


def loads_wandb_mode(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A loader of configurations in which `wandb: off` is `wandb: {mode: off}`.

    Args:
        load: text to values, to YAML of which `off` is false.
    """

    def loaded(text: str) -> Any:
        content = load(text)
        if isinstance(content, dict) and isinstance(content.get("wandb"), str | bool):
            mode = content["wandb"]
            content["wandb"] = {"mode": "off" if mode is False else mode}
        return content

    return loaded


def _split_equals(arg: str) -> list[str]:
    """`--run_dir=RUN` is `--run_dir RUN`."""
    return arg.split("=", 1) if re.match(r"--(run_dir|config|ckpt_path)=", arg) else [arg]


def _own_config(rest: list[str]) -> list[str]:
    """A run's checkpoint alone brings its run's configuration: no other would score that run."""
    if "--config" in rest or "-c" in rest or "--ckpt_path" not in rest[:-1]:
        return []
    run = run_of(Path(rest[rest.index("--ckpt_path") + 1]))
    return ["--config", str(run.config)] if run else []
