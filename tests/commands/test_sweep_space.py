"""W&B's sweep YAML without W&B: what is tried, and what is refused in a sentence."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY

from simclr_pl import UserError
from simclr_pl.commands.sweep.space import Search, read_search

COMMAND = ["${env}", "${interpreter}", "-m", "simclr_pl", "fit", "${args}"]
METRIC = {"name": "probe/val_top1", "goal": "maximize"}


def search(folder: Path, parameters: Any, method: str = "random", **more: Any) -> Search:
    path = folder / "sweep.yaml"
    content = {"method": method, "metric": METRIC, "command": COMMAND, "parameters": parameters}
    path.write_text(yaml.safe_dump({**content, **more}, sort_keys=False))
    return read_search(path)


def drawn(folder: Path, spec: dict[str, Any], count: int = 2000, seed: int = 0) -> list[Any]:
    """Many values of one parameter."""
    return [trial["x"] for trial in search(folder, {"x": spec}).trials(count, seed)]


def share_below(values: list[Any], bound: float) -> float:
    return sum(value < bound for value in values) / len(values)


# Grid ---------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_once_the_last_parameter_moving_first(tmp_path: Path) -> None:
    parameters = {"a": {"values": [1, 2]}, "b": {"value": 7}, "c": {"min": 3, "max": 5}}
    found = search(tmp_path, parameters, "grid")
    expected = [{"a": a, "b": 7, "c": c} for a in (1, 2) for c in (3, 4, 5)]
    assert found.trials(100, 0) == expected
    assert found.trials(4, 0) == expected[:4]
    assert found.searched == ["a", "c"]


def test_a_grid_of_multiples_has_round_numbers(tmp_path: Path) -> None:
    spec = {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.1}
    trials = search(tmp_path, {"x": spec}, "grid").trials(9, 0)
    assert [trial["x"] for trial in trials] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_run_cap_is_kept(tmp_path: Path) -> None:
    assert len(search(tmp_path, {"x": {"min": 0.0, "max": 1.0}}, run_cap=3).trials(8, 0)) == 3


# Random -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "low", "high", "median"),
    [
        ({"min": 2.0, "max": 6.0}, 2, 6, 4),
        ({"distribution": "uniform", "min": -1, "max": 1}, -1, 1, 0),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, 1e-4, 1, 1e-2),
        ({"distribution": "log_uniform", "min": -4, "max": 0}, math.exp(-4), 1, math.exp(-2)),
        ({"distribution": "normal", "mu": 3, "sigma": 2}, -10, 16, 3),
        ({"distribution": "log_normal", "mu": 1, "sigma": 0.5}, 0, 40, math.e),
    ],
)
def test_a_distribution_has_its_range_and_its_median(
    spec: dict[str, Any], low: float, high: float, median: float, tmp_path: Path
) -> None:
    values = drawn(tmp_path, spec)
    assert low <= min(values) < max(values) <= high
    assert abs(share_below(values, median) - 0.5) < 0.03  # 2.7 standard errors of 2,000 draws
    assert len(set(values)) > 1990


def test_whole_numbers_come_equally_often_their_ends_included(tmp_path: Path) -> None:
    values = drawn(tmp_path, {"min": 1, "max": 4})
    assert set(values) == {1, 2, 3, 4}
    assert all(type(value) is int for value in values)
    assert all(abs(values.count(number) / 2000 - 0.25) < 0.03 for number in range(1, 5))


def test_quantised_values_are_multiples_of_q(tmp_path: Path) -> None:
    for base in ("uniform", "log_uniform_values"):
        spec = {"distribution": f"q_{base}", "min": 0.1, "max": 2.0, "q": 0.1}
        values = drawn(tmp_path, spec, 300)
        assert {str(value) for value in values} <= {str(n / 10) for n in range(1, 21)}
    whole = {"distribution": "q_log_uniform_values", "min": 32, "max": 512, "q": 32}
    assert set(drawn(tmp_path, whole)) == set(range(32, 513, 32))


def test_values_come_as_often_as_their_probabilities_say(tmp_path: Path) -> None:
    even = drawn(tmp_path, {"values": ["a", "b"]})
    assert abs(even.count("a") / 2000 - 0.5) < 0.03
    spec = {"values": ["a", "b", "c"], "probabilities": [0.2, 0.0, 0.8]}
    uneven = drawn(tmp_path, spec)
    assert abs(uneven.count("a") / 2000 - 0.2) < 0.03
    assert "b" not in uneven


def test_a_run_s_values_depend_on_seed_number_and_name_alone(tmp_path: Path) -> None:
    one, two = {"min": 0.0, "max": 1.0}, {"values": [1, 2, 3]}
    longer = search(tmp_path, {"x": one, "y": two}).trials(20, 5)
    assert search(tmp_path, {"x": one, "y": two}).trials(4, 5) == longer[:4]
    assert [{"x": trial["x"]} for trial in longer] == search(tmp_path, {"x": one}).trials(20, 5)
    assert search(tmp_path, {"x": one, "y": two}).trials(20, 6) != longer
    both = search(tmp_path, {"x": one, "z": one}).trials(2000, 0)
    assert abs(sum(t["x"] < 0.5 and t["z"] < 0.5 for t in both) / 2000 - 0.25) < 0.03


# Command ------------------------------------------------------------------------------------------


def test_macros_become_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/images")
    command = ["${interpreter}", "-m", "simclr_pl", "fit", "--data.root=${envvar:DATA_ROOT}"]
    found = search(tmp_path, {"model.temperature": {"value": 0.5}}, command=[*command, "${args}"])
    plain = [sys.executable, "-m", "simclr_pl", "fit", "--data.root=/images"]
    assert found.words({"model.temperature": 0.5}) == [*plain, "--model.temperature=0.5"]
    found = found._replace(command=[*command, "${args_no_equals}"])
    assert found.words({"data.scale": [0.2, 1.0]}) == [*plain, "--data.scale", "[0.2, 1.0]"]
    with pytest.raises(UserError, match=r"\$\{args_json\} cannot be used here: there are"):
        found._replace(command=["${args_json}"]).words({})


# Refusals -----------------------------------------------------------------------------------------

RANGE = {"min": 0.0, "max": 1.0}


@pytest.mark.parametrize(
    ("parameters", "more", "sentence"),
    [
        ({"x": RANGE}, {"method": "bayes"}, "method is bayes, and without W&B's server there are"),
        ({"x": RANGE}, {"early_terminate": {"type": "hyperband"}}, "hyperband"),
        ({"x": RANGE}, {"metric": None}, "names no metric"),
        ({"x": RANGE}, {"metric": {"name": "val/loss", "goal": "min"}}, "metric.goal is min"),
        ({"x": RANGE}, {"metric": {"name": "linear/test_top1"}}, "by which nothing is chosen"),
        ({"x": RANGE}, {"command": ["python", "train.py"]}, "command has to train"),
        ({"x": RANGE}, {"method": "grid"}, "a grid has no end of uniform"),
        ({}, {}, "has no parameters"),
        ({"x": 3}, {}, "parameter x should map"),
        ({"x": {"parameters": {"y": RANGE}}}, {}, "written in full, as model.temperature"),
        ({"x": {"distribution": "beta"}}, {}, "distribution beta isn't one of constant"),
        ({"x": {"max": 1.0}}, {}, "(uniform) needs min"),
        ({"x": {"min": 2, "max": 1}}, {}, "min is 2, above max, 1"),
        ({"x": {"values": []}}, {}, "values should be a list"),
        ({"x": {"values": [1, 2], "probabilities": [1]}}, {}, "one for each value"),
        ({"x": {"min": "low", "max": 1.0}}, {}, "min is 'low', which is no number"),
        ({"x": {**RANGE, "distribution": "log_uniform_values"}}, {}, "begins above 0"),
        ({"x": {**RANGE, "distribution": "q_uniform", "q": 0}}, {}, "must be above 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    parameters: Any, more: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        search(tmp_path, parameters, **more)
    assert sentence in str(error.value)
    assert str(tmp_path / "sweep.yaml") in str(error.value)


def test_the_shipped_sweep_tries_what_it_says() -> None:
    found = read_search(REPOSITORY / "configs" / "sweep.yaml")
    trials = found.trials(30, 0)
    assert all(0.05 <= trial["model.temperature"] <= 1 for trial in trials)
    assert {trial["data.batch_size"] for trial in trials} == {128, 256, 512}
