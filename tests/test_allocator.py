"""Freed memory that is kept, as the kernel counts pages."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from simclr_pl.allocator import keep_freed_memory
told = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(5_000_000)
before = faults()
for _ in range(20):
    torch.ones(5_000_000)
print(told, faults() - before)
"""


def pages(**environment: str) -> tuple[bool, int]:
    """Whether malloc was told, and pages that 20 tensors of 4,883 pages each had to ask for."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, check=True, env=clean | environment, stdout=subprocess.PIPE, text=True
    )
    told, count = done.stdout.split()
    return told == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_tensor_as_large_as_the_last_one_asks_for_no_pages() -> None:
    told, count = pages()
    assert told
    assert count < 2 * 4_883


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(
    "setting",
    [
        {"MALLOC_TRIM_THRESHOLD_": "100000"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=100000"},
    ],
)
def test_whoever_has_tuned_malloc_is_left_alone(setting: dict[str, str]) -> None:
    told, _ = pages(**setting)
    assert not told
