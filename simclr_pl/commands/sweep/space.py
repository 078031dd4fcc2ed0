"""Grid and random search of W&B's sweep YAML: the part that needs no server."""

import itertools
import math
import os
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import torch

from simclr_pl.core.errors import UserError
from simclr_pl.core.randomness import uniform
from simclr_pl.run.yaml_file import read_config

Spec = dict[str, Any]
"""A parameter's mapping, as `{values: [0.1, 0.2]}` or `{min: 0.1, max: 1.0}`."""


def _log(spec: Spec, share: float) -> float:
    low, high = math.log(spec["min"]), math.log(spec["max"])
    return math.exp(low + share * (high - low))


def _normal(spec: Spec, share: float) -> float:
    return NormalDist(spec.get("mu", 0), spec.get("sigma", 1)).inv_cdf(share)


DRAWN: dict[str, Callable[[Spec, float], float]] = {
    "uniform": lambda spec, share: spec["min"] + share * (spec["max"] - spec["min"]),
    "log_uniform_values": _log,
    "log_uniform": lambda spec, share: math.exp(DRAWN["uniform"](spec, share)),
    "normal": _normal,
    "log_normal": lambda spec, share: math.exp(_normal(spec, share)),
    "int_uniform": lambda spec, share: (
        spec["min"] + math.floor(share * (spec["max"] - spec["min"] + 1))
    ),
}
"""A share of the distribution, in (0, 1), to the value below which that share lies.

Each but `int_uniform` also as `q_<name>`: rounded to a multiple of `q` (1).
"""

KINDS = ("constant", "categorical", *DRAWN, *(f"q_{n}" for n in DRAWN if n != "int_uniform"))

_BOUNDED = ("uniform", "int_uniform", "log_uniform", "log_uniform_values")


class Search(NamedTuple):
    """A sweep, as its YAML has it.

    Attributes:
        path: of the YAML.
        method: grid or random.
        metric: what runs are compared by.
        goal: minimize or maximize.
        command: words, with W&B's macros.
        parameters: by name, which is that of an option of the command; each with `distribution`.
        content: all of the YAML.
    """

    path: Path
    method: str
    metric: str
    goal: str
    command: list[str]
    parameters: dict[str, Spec]
    content: dict[str, Any]

    @property
    def searched(self) -> list[str]:
        """The parameters that differ from run to run."""
        return [n for n, spec in self.parameters.items() if spec["distribution"] != "constant"]

    def trials(self, most: int, seed: int) -> list[dict[str, Any]]:
        """The values of each run: all of a grid, the last parameter moving first, or random ones.

        A random run's values depend on seed, its number, and the parameters' names, on nothing
        else: a longer sweep begins with the shorter one, and a further parameter changes no other.

        Args:
            most: number of runs at most.
            seed: of random search.
        """
        cap = self.content.get("run_cap")
        most = min(most, cap) if isinstance(cap, int) else most
        if self.method == "random":
            return [
                {name: _draw(name, spec, seed, i) for name, spec in self.parameters.items()}
                for i in range(most)
            ]
        grid = itertools.product(*(_every(*item) for item in self.parameters.items()))
        points = itertools.islice(grid, most)
        return [dict(zip(self.parameters, point, strict=True)) for point in points]

    def words(self, values: dict[str, Any]) -> list[str]:
        """The command of a run, its macros replaced as W&B's agent replaces them.

        Args:
            values: of the run.

        Raises:
            UserError: a macro that makes no options of `fit`.
        """
        flags = [f"--{name}={value}" for name, value in values.items()]
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [str(self.content.get("program", ""))],
            "${args}": flags,
            "${args_no_equals}": [w for n, v in values.items() for w in (f"--{n}", str(v))],
        }
        words = []
        for word in self.command:
            plain = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda m: os.environ.get(m[1], m[1]), word)
            if plain.startswith("${") and plain not in macros:
                known = ", ".join([*macros, "${envvar:NAME}"])
                raise UserError(f"{self.path}: {plain} cannot be used here: there are {known}")
            words += macros.get(plain, [plain])
        return words


def read_search(path: Path) -> Search:
    """Reads a sweep's YAML.

    Args:
        path: of the YAML.

    Raises:
        UserError: not such a file, a search that only W&B's server can do, a command that isn't
            `fit`, a distribution that isn't known or lacks a number, or a metric of test.
    """
    content = read_config(path)
    if (method := content.get("method")) not in ("grid", "random"):
        raise UserError(
            f"{path}: method is {method}, and without W&B's server there are grid and random: "
            "give one of them, or sweep on the server (scripts/sweep.sh)"
        )
    if "early_terminate" in content:
        raise UserError(
            f"{path}: early_terminate (hyperband) needs W&B's server: remove it, or sweep there "
            "(scripts/sweep.sh)"
        )
    metric = content.get("metric")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(f"{path} names no metric: add metric: {{name: probe/val_top1, goal: ...}}")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"{path}: metric.goal is {goal}, but must be minimize or maximize")
    if metric["name"].partition("/")[2].startswith("test"):
        raise UserError(
            f"{path}: {metric['name']} is of test, by which nothing is chosen: compare by a metric "
            "of val, and score the run that you choose on test, once"
        )
    command = [str(word) for word in content.get("command") or []]
    if not {"simclr_pl", "fit"} <= set(command):
        raise UserError(
            f'{path}: command has to train: command: ["${{interpreter}}", -m, simclr_pl, fit, '
            '--config, configs/digits.yaml, "${args}"]'
        )
    given = content.get("parameters")
    if not isinstance(given, dict) or not given:
        raise UserError(f"{path} has no parameters: add at least one, as model.temperature")
    parameters = {str(name): _understood(path, str(name), spec) for name, spec in given.items()}
    search = Search(path, method, metric["name"], goal, command, parameters, content)
    if method == "grid":
        for name, spec in parameters.items():
            _every(f"{path}: parameter {name}", spec)
    return search


def _understood(path: Path, name: str, spec: Any) -> Spec:
    """A parameter with its distribution, which W&B derives where it isn't named."""
    place = f"{path}: parameter {name}"
    if not isinstance(spec, dict) or "parameters" in spec:
        raise UserError(
            f"{place} should map value, values, or min and max to something; a nested one is "
            "written in full, as model.temperature"
        )
    kind = spec.get("distribution") or _implied(spec)
    if kind not in KINDS:
        raise UserError(f"{place}: distribution {kind} isn't one of {', '.join(KINDS)}")
    base = kind.removeprefix("q_")
    needed = {"constant": ("value",), "categorical": ("values",)}.get(
        base, ("min", "max") if base in _BOUNDED else ()
    )
    if missing := [key for key in needed if key not in spec]:
        raise UserError(f"{place} ({kind}) needs {' and '.join(missing)}")
    whole: Spec = {**spec, "distribution": kind}
    if kind == "categorical":
        _check_values(place, whole)
    elif kind != "constant":
        _check_numbers(place, whole, base)
    return whole


def _implied(spec: Spec) -> str:
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    whole = all(isinstance(spec.get(key), int) for key in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def _check_values(place: str, spec: Spec) -> None:
    values, weights = spec["values"], spec.get("probabilities")
    if not isinstance(values, list) or not values:
        raise UserError(f"{place}: values should be a list with something in it")
    if weights is not None and (len(weights) != len(values) or not math.isclose(sum(weights), 1)):
        raise UserError(f"{place}: probabilities should be one for each value, with a sum of 1")


def _check_numbers(place: str, spec: Spec, base: str) -> None:
    for key in spec.keys() & {"min", "max", "mu", "sigma", "q"}:
        if isinstance(spec[key], bool) or not isinstance(spec[key], int | float):
            raise UserError(f"{place}: {key} is {spec[key]!r}, which is no number")
    if base in _BOUNDED and spec["min"] > spec["max"]:
        raise UserError(f"{place}: min is {spec['min']}, above max, {spec['max']}")
    if base == "log_uniform_values" and spec["min"] <= 0:
        raise UserError(f"{place}: min is {spec['min']}, and a logarithmic range begins above 0")
    if spec.get("q", 1) <= 0 or spec.get("sigma", 1) <= 0:
        raise UserError(f"{place}: q and sigma must be above 0")


def _draw(name: str, spec: Spec, seed: int, number: int) -> Any:
    """A parameter's value in a run of random search."""
    stream = zlib.crc32(name.encode())
    share = uniform(seed, 0, torch.tensor([number]), stream, 1).item() + 2.0**-25  # never 0 nor 1
    kind = spec["distribution"]
    if kind == "constant":
        return spec["value"]
    if kind == "categorical":
        values = spec["values"]
        weights = spec.get("probabilities") or [1 / len(values)] * len(values)
        passed = sum(edge <= share for edge in itertools.accumulate(weights))
        return values[min(passed, len(values) - 1)]
    value = DRAWN[kind.removeprefix("q_")](spec, share)
    return _multiple(value / spec.get("q", 1), spec) if kind.startswith("q_") else value


def _multiple(count: float, spec: Spec) -> float:
    """The nearest multiple of `q`, without the noise of its product: 0.3, not 0.30000000000004."""
    q: float = spec.get("q", 1)
    return round(count) * q if isinstance(q, int) else float(f"{round(count) * q:.12g}")


def _every(place: str, spec: Spec) -> list[Any]:
    """All values of a parameter."""
    kind = spec["distribution"]
    if kind == "constant":
        return [spec["value"]]
    if kind == "categorical":
        return list(spec["values"])
    if kind == "int_uniform":
        return list(range(spec["min"], spec["max"] + 1))
    if kind == "q_uniform":
        q = spec.get("q", 1)
        first, last = (round(spec[key] / q) for key in ("min", "max"))
        return [_multiple(count, spec) for count in range(first, last + 1)]
    raise UserError(f"{place}: a grid has no end of {kind}: give values, or method random")
