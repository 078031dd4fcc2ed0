"""Ranks that don't find each other, that want different things, or of which one dies."""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, Outcome, environment, finish, start
from run_files import rows

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(300)]

LONG = (*QUICK, "--trainer.devices", "2", "--trainer.max_epochs", "2000")


def children(process: subprocess.Popen[str]) -> list[int]:
    """Processes that a process has started and that are alive."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def is_rank(number: int) -> bool:
    """Whether a process is one that Lightning has started as the second rank."""
    with suppress(OSError):
        return b"\0LOCAL_RANK=1\0" in b"\0" + Path(f"/proc/{number}/environ").read_bytes()
    return False


def alive(number: int) -> bool:
    """Whether there is such a process, and it isn't just waiting to be buried."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def training(directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Two ranks in mid-training, and the number of the second one."""
    process = start("fit", *LONG, "--run_dir", directory)
    end = time.monotonic() + 120
    while len(rows(directory)) < 4:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end
        time.sleep(0.05)
    (second,) = children(process)
    return process, second


def test_a_rank_that_is_killed_is_named_and_ends_the_rest(tmp_path: Path) -> None:
    process, second = training(tmp_path / "run")
    os.kill(second, signal.SIGKILL)
    done = finish(process, 60)
    assert done.code == 2, done
    assert done.sentence.startswith(
        "error: rank 1 was ended by SIGKILL (the system does so when memory runs out). "
        "Training ended at step "
    )
    assert done.sentence.endswith("; --resume goes on from the last checkpoint")


def test_a_rank_outlives_the_first_one_by_seconds(tmp_path: Path) -> None:
    process, second = training(tmp_path / "run")
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while alive(second):
        assert time.monotonic() < end
        time.sleep(0.1)
    _, err = process.communicate()
    assert "rank 1: the connection to another rank is lost" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("after", [0, 2.5])
def test_a_rank_does_not_outlive_the_first_one_at_start_up(after: float, tmp_path: Path) -> None:
    """Before the ranks have met, when no connection is there to be lost."""
    process = start("fit", *LONG, "--run_dir", tmp_path / "run", fresh=True)
    end = time.monotonic() + 120
    while not (ranks := [child for child in children(process) if is_rank(child)]):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end
        time.sleep(0.01)
    (second,) = ranks
    time.sleep(after)
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    try:
        while alive(second):
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.kill(second, signal.SIGKILL)
    _, err = process.communicate()
    assert err == "error: rank 0, which has started this rank, is gone\n"


def test_a_rank_that_hangs_beside_a_dead_one_is_ended(tmp_path: Path) -> None:
    """Where no collective notices: the first rank sleeps, with a rank that is gone."""
    process, second = training(tmp_path / "run")
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(second, signal.SIGKILL)
    time.sleep(1)
    os.kill(process.pid, signal.SIGCONT)
    done = finish(process, 60)
    assert done.code in (1, 2), done
    assert "rank 1 was ended by SIGKILL" in done.err


# Ranks that somebody else starts ------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def rank(number: int, port: int, directory: Path, *args: Any, **more: str) -> subprocess.Popen[str]:
    """A rank of two, as `torchrun` starts them."""
    variables = {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    command = ("fit", *QUICK, "--trainer.devices", "2", "--run_dir", directory, *args)
    return start(*command, env=environment(**{**variables, **more}))


def both(first: subprocess.Popen[str], second: subprocess.Popen[str]) -> list[Outcome]:
    return [finish(first), finish(second)]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("--model.temperature", "0.2"), "model.temperature is 0.2 on rank 1 ("),
        (("--seed_everything", "3"), "seed_everything is 3 on rank 1 ("),
    ],
)
def test_ranks_of_different_recipes_are_told_before_the_first_step(
    tmp_path: Path, other: tuple[str, ...], said: str
) -> None:
    port, run = free_port(), tmp_path / "run"
    done = both(rank(0, port, run), rank(1, port, run, *other))
    assert [outcome.code for outcome in done] == [2, 2]
    assert done[0].err.startswith(f"error: {said}")
    assert " on rank 0: all ranks need the same command, data and packages" in done[0].err
    assert done[1].err == done[0].err.replace("error: ", "rank 1: ")
    assert not run.exists()


def test_ranks_with_different_images_are_told(tmp_path: Path) -> None:
    from photographs import fill

    port, run, args = free_port(), tmp_path / "run", ("--data.dataset", "folder", "--data.root")
    fill(tmp_path / "one", 300)
    fill(tmp_path / "other", 299)
    done = both(
        rank(0, port, run, *args, tmp_path / "one"), rank(1, port, run, *args, tmp_path / "other")
    )
    assert [outcome.code for outcome in done] == [2, 2]
    assert "error: the data is " in done[0].err


def test_a_rank_that_starts_late_is_waited_for_in_words(tmp_path: Path) -> None:
    port, run = free_port(), tmp_path / "run"
    first = rank(0, port, run)
    time.sleep(14)
    done = both(first, rank(1, port, run))
    assert [(outcome.code, outcome.err) for outcome in done] == [(0, "")] * 2
    assert f"rank 0 of 2 has waited for the others for 10 s, at 127.0.0.1:{port}" in done[0].out


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        done = finish(rank(0, port, tmp_path / "run"))
    assert done.code == 2
    assert done.sentence.startswith(f"error: port {port} of ")
    assert "set MASTER_PORT to another one on all machines" in done.sentence
    assert not (tmp_path / "run").exists()


def test_an_address_that_nobody_knows_is_told(tmp_path: Path) -> None:
    done = finish(rank(0, free_port(), tmp_path / "run", MASTER_ADDR="nowhere.invalid"))
    assert done.code == 2
    assert "the address nowhere.invalid of rank 0 is not known on " in done.sentence


def test_machines_without_a_place_to_meet_are_told(tmp_path: Path) -> None:
    done = finish(start("fit", *LONG, "--trainer.num_nodes", 2, "--run_dir", tmp_path / "run"))
    assert done.code == 2
    assert done.sentence == (
        "error: MASTER_ADDR and MASTER_PORT and NODE_RANK must be set for 2 machines to find each "
        "other: start with scripts/torchrun.sh or scripts/slurm.sbatch, which do so"
    )
