"""Disks without room, directories that vanish, and output that nobody reads any more."""

import os
import sys
from pathlib import Path

import pytest
from commands import QUICK, Outcome, called, finish, fit, run, start
from filling import room_given_back
from run_files import checkpoint, rows

EVERY = ("--checkpoint.every_n_steps", "1")


def filled(directory: Path, size: int) -> Outcome:
    """How a run ends whose files may not grow beyond so many bytes from its third step on."""
    full = ("--trainer.callbacks+=filling.Full", f"--trainer.callbacks.size={size}")
    with room_given_back():
        return run("fit", *QUICK, *EVERY, "--run_dir", directory, *full)


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    path = directory / "checkpoints" / "last.ckpt"
    outcome = filled(directory, 20_000)
    assert outcome.code == 2, outcome
    assert outcome.sentence == (
        f"error: {path} cannot be written (File too large): see to it that it can be; the "
        "checkpoint before is whole, and --resume goes on from it"
    )
    assert checkpoint(directory)["global_step"] == 2
    assert sorted(file.name for file in path.parent.iterdir()) == ["data.npz", "last.ckpt"]
    fit(directory, *EVERY, "--resume")
    assert checkpoint(directory)["global_step"] == 4
    assert [row["step"] for row in rows(directory)] == ["0", "1", "2", "3"]


def test_a_disk_that_is_full_at_a_number_ends_in_a_sentence(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    outcome = filled(directory, 10)
    assert outcome.code == 2, outcome
    assert outcome.sentence.startswith(f"error: {directory}/metrics.csv cannot be written (File to")
    assert outcome.sentence.endswith("; --resume goes on from the last checkpoint")
    assert checkpoint(directory)["global_step"] == 2


def test_a_directory_that_vanishes_ends_in_a_sentence(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    args = ("--run_dir", directory, "--trainer.callbacks+=filling.Gone")
    outcome = run("fit", *QUICK, *EVERY, *args)
    assert outcome.code == 2, outcome
    assert f"cannot be written (there is no folder {directory}): " in outcome.sentence


def test_a_training_goes_on_though_nobody_reads_its_output(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with Path("/dev/full").open("w") as nowhere:
        process = start("fit", *QUICK, "--run_dir", directory, stderr=nowhere)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()  # as `head -1` does
        process.stdout = None
        assert finish(process).code == 0
    assert checkpoint(directory)["global_step"] == 4


SPEAK = """
import os, sys
from simclr_pl.commandline.output import keep_going
keep_going()
sys.stdout.write("a")
sys.stdout.flush()
sys.stderr.write("b")
sys.stderr.flush()
found = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(found, str(found > 2).encode())
"""


@pytest.mark.parametrize("where", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_closed_streams_end_nothing_and_are_no_file_of_ours(tmp_path: Path, where: str) -> None:
    path = tmp_path / "file"
    command = f'exec "$0" -c "$1" "$2" {where}'
    done = called("sh", "-c", command, sys.executable, SPEAK, path)
    assert done.returncode == 0, done
    assert path.read_text() == "True"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The real thing: a file system with too little room for a checkpoint."""
    command = (
        f'mount -t tmpfs -o size=150k none {tmp_path} && "$@"; code=$?; '
        f"find {tmp_path} -name '*.tmp'; exit $code"
    )
    fit = (sys.executable, "-m", "simclr_pl", "fit", *QUICK, "--run_dir", tmp_path / "run")
    done = called("unshare", "-m", "sh", "-c", command, "sh", *fit)
    assert done.returncode == 2, done
    assert done.stderr == (
        f"error: {tmp_path}/run/checkpoints/last.ckpt cannot be written (No space left on "
        "device): free some space on that disk\n"
    )
    assert ".tmp" not in done.stdout
