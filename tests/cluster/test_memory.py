"""Where memory ends: the largest batch that fits, and the sentence that says so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import QUICK, REPOSITORY, Outcome, environment, finish
from run_files import rows

from simclr_pl import SimCLR
from simclr_pl.cluster.memory import PeakMemory, ran_out
from simclr_pl.cluster.out_of_memory import advise, largest_batch

LARGE = (
    *QUICK,
    *("--data.image_size", "32", "--data.batch_size", "1400"),
    *("--model.encoder_args", '{"channels": [24, 24, 48, 48], "stem_type": "", "stem_width": 24}'),
    *("--trainer.limit_val_batches", "0"),
)
"""Some 4 GiB a step."""


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 17, 100, 511, 512, 999])
def test_the_largest_batch_is_found_to_an_eighth_and_never_too_large(limit: int) -> None:
    tried = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= limit

    found = largest_batch(fits, 1000)
    assert found <= limit
    assert limit - found <= max(limit / 8, 1)
    assert len(tried) <= 13


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (KeyError("memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, memory: bool) -> None:
    assert ran_out(error) is memory


def test_a_peak_is_what_was_there_at_once() -> None:
    with PeakMemory(torch.device("cpu")) as peak:
        for _ in range(3):
            torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak.bytes is not None
    assert 60 * 2**20 < peak.bytes < 160 * 2**20


@pytest.mark.parametrize(
    ("micro", "most", "advice"),
    [
        (None, 40, "about 40 fit. Give --model.micro_batch_size 40 to train on batches of 64"),
        (32, 40, "about 40 fit. Give --model.micro_batch_size 16, which is 32 now"),
        (1, 40, "with batches of 64 images, one at a time; take a smaller encoder, or smaller"),
        (None, 1, "not even two of them fit"),
        (None, None, "64 images: give --model.micro_batch_size 32 or less to train on batches of"),
        (32, None, "give --model.micro_batch_size 16 or less"),
    ],
)
def test_what_is_advised_is_possible(micro: int | None, most: int | None, advice: str) -> None:
    assert advice in advise(3, 64, most, SimCLR(micro_batch_size=micro))


# In a process that may not have more ------------------------------------------------------------


def train(directory: Path, gib: float, *args: object) -> Outcome:
    """Trains in a process that may take so much more than what its libraries have taken."""
    script = REPOSITORY / "tests" / "helpers" / "limited.py"
    command = (sys.executable, script, "fit", *LARGE, "--run_dir", directory)
    process = subprocess.Popen(
        [str(word) for word in (*command, *args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(BYTES=str(int(gib * 2**30))),
    )
    return finish(process, timeout=240)


@pytest.mark.timeout(600)
def test_out_of_memory_is_a_sentence(tmp_path: Path) -> None:
    said = train(tmp_path / "run", 2).sentence
    assert "out of memory at step 0, with batches of 1400 images: give " in said
    assert not (tmp_path / "run").exists()  # not a step was finished
    outcome = train(tmp_path / "run", 2, "--model.micro_batch_size", 100)
    assert outcome.code == 0, outcome
    assert len([row for row in rows(tmp_path / "run") if "train/loss" in row]) == 2


@pytest.mark.timeout(600)
@pytest.mark.ddp
def test_ranks_out_of_memory_end_with_the_sentence(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", 1.2, "--trainer.devices", 2)
    assert outcome.code != 0
    assert "out of memory at step 0, with batches of 1400 images: " in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()
