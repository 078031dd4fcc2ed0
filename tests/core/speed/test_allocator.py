"""Freed memory that is kept, as the kernel counts pages."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from simclr_pl.core.speed.allocator import keep_freed_memory
told = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return [torch.ones(5_000_000) for _ in range(4)]
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(told, faults() - before)
"""


def pages(**environment: str) -> tuple[bool, int]:
    """Whether malloc was told, and how many pages ten steps of 19,531 pages each were given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, check=True, env=clean | environment, stdout=subprocess.PIPE, text=True
    )
    told, count = done.stdout.split()
    return told == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_as_large_as_the_last_one_needs_few_new_pages() -> None:
    told, count = pages()
    assert told
    assert count < 0.5 * 10 * 19_531  # it is 0 mostly: where the heap ends is the system's choice


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(
    "setting",
    [
        {"MALLOC_TRIM_THRESHOLD_": "100000"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=100000"},
    ],
)
def test_whoever_has_tuned_malloc_is_left_alone(setting: dict[str, str]) -> None:
    told, count = pages(**setting)
    assert not told
    assert count > 0.9 * 10 * 19_531


GIVEN_BACK = """
import torch
from pathlib import Path
from simclr_pl.core.speed.allocator import give_back_memory, keep_freed_memory
keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
some = [torch.ones(5_000_000) for _ in range(10)]
del some
kept = resident() - before
give_back_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_kept_can_be_given_back() -> None:
    command = [sys.executable, "-c", GIVEN_BACK]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 190_000_000
    assert left < 20_000_000
