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
