"""A run's recipe: the content of its config.yaml, and the keys that a resume may change."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Door, is_class_path
from simclr_pl.run.directory import RunDirectory, is_rank_zero
from simclr_pl.run.older_runs import recipe_of_today
from simclr_pl.run.yaml_file import dump_yaml, read_config
from simclr_pl.writing import write_text

FREE_TO_CHANGE = (
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.max_epochs", "trainer.max_steps", "trainer.max_time",
    "trainer.log_every_n_steps", "trainer.enable_progress_bar",
    "trainer.logger", "trainer.callbacks", "trainer.profiler", "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches", "trainer.enable_model_summary", "trainer.default_root_dir",
    "model.loss_block_size", "model.checkpoint", "data.root", "data.num_workers",
    "data.predict_split", "data.on_bad_image", "data.max_pixels", "data.compiled", "model.compiled",
    "checkpoint.", "knn.", "health.", "linear.", "pictures.", "wandb", "tensorboard",
    "init_from",
)  # fmt: skip
"""Keys that a resume may change; a trailing dot stands for all keys of a group."""

PLACES = ("data.dataset.init_args.cache", "data.dataset.init_args.cache_gb")
"""Keys, whole, that say where and how images are kept; a resume may change them, too."""

ENDS = ("trainer.max_epochs", "trainer.max_steps")
"""Ends of the schedule: they change the trajectory, and a resume says so."""

OLDER_RUNS: dict[str, Any] = {
    "data.labels": "given",
    "model.objective": "nt_xent",
    "model.schedule": "cosine",
    "model.schedule_interval": "epoch",
}
"""Values that a run followed whose recipe is older than the key."""


SECRET = re.compile(r"(api_?key|token|password|passwd|secret|credentials?)$", re.IGNORECASE)
"""Names of a logger's arguments whose values only its service may see."""


def portable(parser: Any, config: Any) -> dict[str, Any]:
    """A configuration as plain values, without the options of this run on this machine alone.

    The values go into files and to W&B: keys and passwords of loggers are left out, and named.
    """
    whole: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False, format="yaml"))
    kept, secrets = without_secrets(whole)
    if secrets and is_rank_zero():
        sys.stdout.write(
            f"left out of config.yaml, as a secret: {', '.join(secrets)}; who runs that file gives "
            "it again, or in the environment variable that the service knows\n"
        )
    mine = ("run_dir", "resume", "config", "seeds", "split", "out")
    return {k: v for k, v in kept.items() if k not in mine}


def without_secrets(recipe: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe without the keys and passwords among the trainer's objects, and their names."""
    found: list[str] = []

    def kept(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [kept(item, f"{name}[{place}]") for place, item in enumerate(value)]
        if not isinstance(value, dict):
            return _without_password(value, name, found)
        secret = [k for k, v in value.items() if isinstance(v, str) and SECRET.search(str(k))]
        found.extend(f"{name}.{key}" for key in secret)
        return {k: kept(v, f"{name}.{k}") for k, v in value.items() if k not in secret}

    return {k: kept(v, k) if k == "trainer" else v for k, v in recipe.items()}, found


def _without_password(value: Any, name: str, found: list[str]) -> Any:
    """An address `https://user:password@host` as `https://host`; all else as it is."""
    bare = re.sub(r"(?<=://)[^/@\s]*:[^/@\s]*@", "", value) if isinstance(value, str) else value
    if bare != value:
        found.append(f"the password in {name}")
    return bare


def own_encoder(configs: Sequence[Path]) -> Door | None:
    """The encoder's class that configurations name, later ones winning; `None` for a library's.

    A configuration is its reader's own, unlike a checkpoint, whose classes nobody imports.
    """
    named = [(read_config(path).get("model") or {}).get("encoder") for path in configs]
    found = next((each for each in reversed(named) if each), None)
    return found if is_class_path(found) else None


def is_fine_tuning(config: dict[str, Any]) -> bool:
    """Whether a configuration is of a fine-tuning, in today's form or an older version's."""
    return "label_fraction" in config or "label_fraction" in (config.get("data") or {})


def save_config(run: RunDirectory, config: dict[str, Any]) -> None:
    """Writes `config.yaml`, in one rename."""
    write_text(run.config, dump_yaml(config), run.option)


def check_same_recipe(
    run: RunDirectory,
    now: dict[str, Any],
    model: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Refuses to continue a run with another recipe.

    Args:
        run: the run to continue.
        now: the configuration, from `portable`.
        model: the model's keys in the run's checkpoint, which stand in for a lost config.yaml.
        defaults: of all options, for keys that the recipe of an older version lacks.

    Raises:
        UserError: names the first key that differs, unless a resume may change it.
    """
    after = flat(now)  # (of a fine-tuning, which has other keys)
    older = {key: value for key, value in OLDER_RUNS.items() if key in after}
    if _is_lost(run):
        before = after | {k: v for k, v in flat({"model": model or {}}).items() if k in after}
    else:  # (Older versions wrote secrets into it.)
        known = {key: value for key, value in flat(defaults or {}).items() if key in after}
        was = flat(without_secrets(read_config(run.config))[0])
        before = older | recipe_of_today(was, known, after)
    before, after = _spelt_as(before, after), _spelt_as(after, before)
    for key in sorted((before.keys() | after.keys()).difference(PLACES)):
        if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE):
            raise UserError(
                f"{key} was {before.get(key)} in {run.path} and is {after.get(key)} now: a resume "
                "continues the same recipe; give it as it was, or start a new run in another "
                f"{run.option}"
            )
    for unit, key, other in (("epoch", *ENDS), ("step", *reversed(ENDS))):
        _check_end(run, unit, key, other, before.get(key), after.get(key))


def _spelt_as(recipe: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A flat recipe in which `shards` is `class_path: shards` where another recipe has that key."""
    return {
        key + ".class_path" * (f"{key}.class_path" in other): value for key, value in recipe.items()
    }


def _check_end(run: RunDirectory, unit: str, key: str, other: str, before: Any, after: Any) -> None:
    """Says where a schedule's end moves to; a resume may move it out, and not in."""
    ends = [int(end) if end and int(end) > 0 else None for end in (before, after)]
    if ends[0] == ends[1]:
        return
    if ends[0] and ends[1] and ends[1] < ends[0]:
        raise UserError(
            f"{key} was {ends[0]} in {run.path} and is {ends[1]} now: a resume "
            f"can move the schedule's end out, not in; start a new run in another {run.option}"
        )
    if is_rank_zero():
        old, new = (end or f"that of {other}" for end in ends)
        sys.stdout.write(
            f"The schedule's end moves from {unit} {old} to {new}: from here on the learning rate "
            "follows the new cosine\n"
        )


def _is_lost(run: RunDirectory) -> bool:
    """Whether a run's config.yaml is missing or empty; if so, a line says it."""
    there = run.config.is_file()
    # (A machine that loses power may leave a file of its length, without its content.)
    if there and run.config.read_bytes().strip(b"\0 \r\n"):
        return False
    if is_rank_zero():
        sys.stdout.write(
            f"{run.config} is {'empty' if there else 'missing'}: it is written anew from this "
            "command, whose options could not be compared with the run's\n"
        )
    return True


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration by dotted names, as on the command line."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found
