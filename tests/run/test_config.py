"""What a resume may change of a recipe: runs that are older than an option go on."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from simclr_pl import UserError
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.run.config import OLDER_RUNS, check_same_recipe, flat, save_config
from simclr_pl.run.directory import RunDirectory


def test_an_older_run_goes_on_with_what_it_did_before_there_was_an_option(tmp_path: Path) -> None:
    older: dict[str, Any] = {"data": {"root": "data"}, "trainer": {"max_epochs": 2}}
    save_config(RunDirectory(tmp_path), older)
    now = {"data": {"root": "data", "labels": "given"}, "trainer": {"max_epochs": 2}}
    check_same_recipe(RunDirectory(tmp_path), now)
    now["data"]["labels"] = "none"
    with pytest.raises(UserError, match=r"data\.labels was given in .* and is none now"):
        check_same_recipe(RunDirectory(tmp_path), now)


def test_older_runs_did_what_the_options_have_by_default() -> None:
    defaults = flat({"data": dict(defaults_of(ContrastiveDataModule))})
    for key, value in OLDER_RUNS.items():
        if key.startswith("data."):
            assert defaults[key] == value


def defaults_of(cls: type) -> list[tuple[str, Any]]:
    return [(name, p.default) for name, p in inspect.signature(cls).parameters.items()]


def test_where_shards_are_kept_may_change_and_what_is_read_of_them_may_not(tmp_path: Path) -> None:
    def recipe(dataset: Any, root: str = "shards") -> dict[str, Any]:
        return {"data": {"dataset": dataset, "root": root}, "trainer": {"max_epochs": 2}}

    def shards(**args: Any) -> dict[str, Any]:
        return {"class_path": "shards", "init_args": args}

    run = RunDirectory(tmp_path)
    for before, after in (
        ("shards", shards(cache_gb=100, cache="/scratch")),
        (shards(cache_gb=1), "shards"),
        (shards(image="jpg", cache_gb=1, channels=3), shards(channels=3, image="jpg", cache="/a")),
    ):
        save_config(run, recipe(before))
        check_same_recipe(run, recipe(after, "https://host/shards"))
    for before, after, said in (
        ("shards", shards(image="jpg"), r"init_args\.image was None in .* and is jpg now"),
        (shards(image="jpg", cache_gb=1), shards(cache_gb=1), r"image was jpg in .* is None now"),
        ("folder", shards(cache_gb=1), r"dataset\.class_path was folder in .* is shards now"),
        ("folder", "shards", r"data\.dataset was folder in .* is shards now"),
    ):
        save_config(run, recipe(before))
        with pytest.raises(UserError, match=said):
            check_same_recipe(run, recipe(after))
