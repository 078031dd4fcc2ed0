"""All commands read YAML by the same rules."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import QUICK, fit, run

from simclr_pl.commandline.call import data_of
from simclr_pl.commands.sweep.space import read_search
from simclr_pl.run.yaml_file import dump_yaml, load_yaml, read_config

SWEEP = """
method: random
metric: {name: probe/val_top1, goal: maximize}
command: [python, -m, simclr_pl, fit, "${args}"]
parameters: {model.temperature: {min: 1e-1, max: 3e-1}}
"""


def test_numbers_are_numbers_to_every_command(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("data: {flip: 3e-1, batch_size: 1_28}\nmodel: {learning_rate: 5e-2}\n")
    fit(tmp_path / "run", "--config", config)
    assert read_config(tmp_path / "run" / "config.yaml")["data"]["flip"] == 0.3
    assert data_of([config])._augmentation["flip"] == 0.3
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert read_search(tmp_path / "sweep.yaml").parameters["model.temperature"]["max"] == 0.3


def test_a_saved_configuration_is_read_as_it_was_given(finished: Path) -> None:
    config = finished / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.05", "learning_rate: 5e-2"))
    assert "5e-2" in config.read_text()
    fit(finished, "--resume")


def test_a_saved_configuration_with_a_key_twice_is_no_recipe(finished: Path) -> None:
    config = finished / "config.yaml"
    config.write_text(config.read_text() + "seed_everything: 1\n")
    assert "key seed_everything stands in line" in run("validate", "--run_dir", finished).sentence
    again = run("fit", *QUICK, "--resume", "--run_dir", finished)
    assert f"{config}: key seed_everything stands in line" in again.sentence


@pytest.mark.parametrize(
    "value",
    [
        *("3e-1", "1e5", "-2E+3", "2020-01-01", "yes", "1_000", "0x10", "null", "~", "1:30", "1."),
        *(0.3, 1e-6, None, True, [1, "1e5"], "", "ä ±"),
    ],
)
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    assert load_yaml(dump_yaml({"a": value})) == {"a": value}


def test_aliases_and_merged_keys_are_read(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n"
    assert load_yaml(text) == yaml.safe_load(text)


def test_the_same_key_in_two_places_is_no_key_twice() -> None:
    text = "a: {x: 1}\nb: {x: 1}\nc: [{x: 1}, {x: 2}]\nd: [x, x]\ne: x\nf: x\n"
    assert load_yaml(text) == yaml.safe_load(text)
