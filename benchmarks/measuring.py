"""How the benchmarks measure: in turns within one run, and memory in fresh processes."""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simclr_pl.commands.bench.ceilings import synchronise

RESULTS = Path(__file__).resolve().parent / "results"
MIB = 2**20


class Timing(NamedTuple):
    """Seconds: the median over turns, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        unit, scale = ("ms", 1e3) if self.median < 1 else ("s", 1.0)
        low, median, high = (f"{scale * value:.3g}" for value in (self.low, self.median, self.high))
        return f"{median} {unit} ({low} to {high})"


def in_turns(
    work: Mapping[str, Callable[[], object]], device: torch.device, turns: int
) -> dict[str, Timing]:
    """Runs each piece of work once a turn, after two turns that don't count.

    What else the machine does meets all of them alike: ratios are worth more than the seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(turns + 2):
        for name, function in work.items():
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def in_a_fresh_process(script: str, *args: object) -> Any:
    """What a script prints as JSON on its last line: each measurement of memory is its own."""
    command = [sys.executable, script, *map(str, args)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: torch.device, *packages: str) -> str:
    """The machine and the versions, for a table's last line."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        hardware = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages)]
    return ", ".join([hardware, f"Python {platform.python_version()}", *versions])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} CPU" if names else f"{platform.machine()} CPU"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table's lines."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def write(name: str, title: str, lines: list[str]) -> None:
    """Prints a result and writes it to benchmarks/results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(
        "\n".join([f"# {title}", "", *lines]) + "\n", encoding="utf-8"
    )
    print("\n".join(lines))
