"""Short forms of options spelt out: `--run_dir RUN`, `--wandb off`, `--seeds 0 1 2`."""

import itertools
import json
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

    For `bench` and `doctor`, which train anew, the configuration alone.

    Args:
        args: command and options, as on the command line.

    Raises:
        UserError: a directory without a run.
    """
    args = [part for arg in args for part in split_equals(arg)]
    command, *rest = args
    if command == "fit" or rest[-1:] == ["--run_dir"]:
        return args
    if "--run_dir" not in rest:
        return [command, *_own_config(rest), *rest]
    run = RunDirectory(rest[rest.index("--run_dir") + 1])
    if not run.config.is_file():
        raise UserError(f"{run.path} holds no run: give the directory of a run as --run_dir")
    if command not in ("bench", "doctor") and not any(a.startswith("--ckpt_path") for a in rest):
        rest = [*rest, "--ckpt_path", str(run.last_checkpoint)]
    return [command, "--config", str(run.config), *rest]


def as_options(hints: dict[str, str], args: list[str]) -> list[str]:
    """Options as a person writes them, as the parser wants them.

    `--seeds 0 1 2`, or `--seeds 0 --seeds 1`, is `--seeds=[0,1,2]`; `--augment` alone is true.

    Args:
        hints: the type of each option that takes a list or a yes or no, in words.
        args: the options.
    """
    found: dict[str, list[str]] = {}
    rest: list[str] = []
    name = ""
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue="--"):
        option, equals, value = arg.partition("=")
        if option.startswith("--"):
            name = option if "list[" in hints.get(option, "") else ""
            if hints.get(arg) in (str(bool), "bool") and following not in ("true", "false"):
                rest.append(f"{arg}=true")
            elif name:
                found.setdefault(name, []).extend([value] if equals else [])
            else:
                rest.append(arg)
        else:
            (found[name] if name else rest).append(arg)
    for name, values in found.items():
        rest.append(f"{name}=[{','.join(v.removeprefix('[').removesuffix(']') for v in values)}]")
    return rest


def with_wandb_mode(args: list[str]) -> list[str]:
    """`--wandb off` is `--wandb.mode off`."""
    return [re.sub(r"^--wandb(?==|$)", "--wandb.mode", arg) for arg in args]


def with_door_arguments(args: list[str]) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """A command line in which `--model.optimizer CLASS --model.optimizer.lr 0.1` is one option.

    Args:
        args: command and options.

    Returns:
        The command line, and (door, argument, value) for doors that a file names, not the command
        line.

    Raises:
        UserError: such an argument beside `--print_config`, which knows nothing of it.
    """
    rest: list[str] = []
    found: list[tuple[str, str, Any]] = []
    places: dict[str, int] = {}
    words = iter(args)
    for arg in words:
        option, equals, value = arg.partition("=")
        door = next((door for door in DOORS if option.startswith(f"--{door}.")), None)
        if door is not None:
            name = option.removeprefix(f"--{door}.").removeprefix("init_args.")
            found.append((door, name, load_yaml(value if equals else next(words, ""))))
            continue
        rest.append(arg)
        if option.removeprefix("--") in DOORS:
            rest[-1:] = [option, value if equals else next(words, "")]
            places[option.removeprefix("--")] = len(rest) - 1
    for door, name, value in found:
        if door in places:
            chosen = add_argument(load_yaml(rest[places[door]]), name, value)
            rest[places[door]] = json.dumps(chosen)
    found = [each for each in found if each[0] not in places]
    if found and any(arg.startswith("--print_config") for arg in args):
        door, name, _ = found[0]
        raise UserError(
            f"--print_config with --{door}.{name}: give --{door} too, which a file names"
        )
    return rest, found


def add_argument(chosen: Any, name: str, value: Any) -> dict[str, Any]:
    """Adds an argument to the choice at a door.

    Args:
        chosen: the choice: a name, a class path, or a mapping of `class_path` and `init_args`.
        name: the argument's, or `class_path`.
        value: its value.
    """
    whole = dict(chosen) if isinstance(chosen, dict) else {"class_path": chosen}
    if name == "class_path":
        return {**whole, "class_path": value}
    return {**whole, "init_args": {**(whole.get("init_args") or {}), name: value}}


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


def split_equals(arg: str) -> list[str]:
    """`--run_dir=RUN` is `--run_dir RUN`."""
    return arg.split("=", 1) if re.match(r"--(run_dir|config|ckpt_path)=", arg) else [arg]


def _own_config(rest: list[str]) -> list[str]:
    """A run's checkpoint alone brings its run's configuration: no other would score that run."""
    if "--config" in rest or "-c" in rest or "--ckpt_path" not in rest[:-1]:
        return []
    run = run_of(Path(rest[rest.index("--ckpt_path") + 1]))
    return ["--config", str(run.config)] if run else []
