"""Freed memory that is kept, as the kernel counts pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_pl.allocator import ask_for_large_pages

SCRIPT = """
import resource, sys, torch
from simclr_pl.allocator import keep_freed_memory
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


LARGE = """
import resource, sys, torch
from simclr_pl.allocator import ask_for_large_pages
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
new = torch.empty(2**26, dtype=torch.uint8)
told = ask_for_large_pages(new.data_ptr(), new.nbytes) if sys.argv[1] == "ask" else False
new.fill_(1)
print(told, faults() - before, int(new.sum()))
"""


def test_new_memory_comes_in_large_pages_where_they_are_asked_for() -> None:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.is_file() or "[madvise]" not in switch.read_text():
        pytest.skip("the system has no large pages, or gives them unasked")
    found = {}
    for how in ("ask", "don't"):
        command = [sys.executable, "-c", LARGE, how]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[how] = done.stdout.split()
    assert [found[how][0] for how in ("ask", "don't")] == ["True", "False"]
    assert found["ask"][2] == found["don't"][2] == str(2**26)
    # 16,384 small pages; large ones are given as far as there are any.
    assert int(found["ask"][1]) < int(found["don't"][1])


def test_small_memory_is_left_to_malloc() -> None:
    assert not ask_for_large_pages(0, 2**20)
