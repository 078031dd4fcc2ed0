"""What goes wrong with Weights & Biases in the middle of a run: a sentence, and the run goes on."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from commands import QUICK, REPOSITORY, called, environment, finish, fit, run, signal_when, start
from offline import artifacts, begun, history, records
from recording import wandb_process
from run_files import rows
from stopping import begin
from wandb_server import Server, no_answer, wandb_server

from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.results import sha256
from simclr_pl.run.unfinished import UNFINISHED, UnfinishedError
from simclr_pl.tracking.loggers import Tracking
from simclr_pl.tracking.wandb import FLUSH_S, WandbChoice, build_logger, end_run

OFFLINE = ("--wandb", "offline", "--wandb.log_model", "1", "--wandb.keep", "9")

RECIPE = (*QUICK, *OFFLINE, "--trainer.max_epochs", 4)


def steps(found: list[dict[str, Any]]) -> list[int]:
    """Those that a part of a run has a loss for."""
    return [row["trainer/global_step"] for row in history(found) if "train/loss" in row]


def flushed(directory: Path) -> bool:
    """Whether the moment has come, and W&B's own process has written what it was told by then."""
    flag = directory.with_suffix(".flag")
    return flag.exists() and time.time() - flag.stat().st_mtime > FLUSH_S + 1


def kinds(found: list[dict[str, Any]]) -> set[str]:
    return {record["type"] for record in found}


# Told to stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_run_that_was_told_to_stop_goes_on_as_the_same_run(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As Slurm does it: all processes of a job get the signal, and SIGTERM ends W&B's own."""
    directory = tmp_path / "run"
    process = begin(directory, *RECIPE, moment="step 4")
    signal_when(process, lambda: flushed(directory) and tell_w_and_b(process.pid, number), number)
    done = finish(process)
    assert done.code == UNFINISHED == 75, done
    assert f"unfinished: stopped by {number.name} at step 4, saved in " in done.err
    assert done.err.count("\n") == 1
    try:
        fit(directory, *RECIPE[len(QUICK) :], "--resume")
    finally:
        wandb.teardown()
    first, second = records(directory)
    name = (directory / "wandb_id.txt").read_text().strip()
    assert [(part["run_id"], part["resume"]) for part in map(begun, (first, second))] == [
        (name, True)
    ] * 2
    assert (steps(first)[:3], steps(second)) == ([0, 1, 2], [4, 5, 6, 7])
    if number == signal.SIGUSR1:
        assert steps(first) == [0, 1, 2, 3]
        assert "preempting" in kinds(first)
        assert done.out.count("Weights & Biases") == 1
    else:
        assert "Weights & Biases: no more is logged there (" in done.out
        assert f"; to upload: wandb sync {directory}/wandb/*run-*\n" in done.out
    assert "preempting" not in kinds(second)


def tell_w_and_b(parent: int, number: signal.Signals) -> bool:
    """Sends W&B's own process a signal, and leaves it the time to end of it."""
    os.kill(wandb_process(parent), number)
    time.sleep(0.5)
    return True


# Gone ---------------------------------------------------------------------------------------------


def test_a_run_outlives_w_and_b_s_own_process(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    lost = ("--trainer.callbacks+=recording.WandbLost", "--trainer.callbacks.step", 3)
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])
    command = ("fit", *RECIPE, *lost, "--run_dir", directory)
    done = finish(start(*command, env=environment(PYTHONPATH=paths)))
    assert done.code == 0, done
    assert "Traceback" not in done.err
    assert [int(row["step"]) for row in rows(directory)] == list(range(8))
    offline, *said = [line for line in done.out.splitlines() if "Weights & Biases" in line]
    assert offline.startswith("Weights & Biases: offline; to upload: ")
    sentences = [line.partition(" (")[0] for line in said]
    never = "Weights & Biases: the checkpoint is no artifact"
    assert set(sentences) == {
        "Weights & Biases: no more is logged there", never, "Weights & Biases: not all is uploaded",
    }  # fmt: skip
    assert sum(sentence != never for sentence in sentences) == 2
    try:
        fit(directory, *RECIPE[len(QUICK) :], "--resume", "--trainer.max_epochs", 5)
    finally:
        wandb.teardown()
    *_, last = records(directory)
    assert begun(last)["run_id"] == (directory / "wandb_id.txt").read_text().strip()
    assert steps(last) == [8, 9]
    logged = [set(artifact["aliases"]) for artifact in artifacts(last)]
    assert logged[-1] == {"latest", "epoch-5"}


TWO_RUNS = """
import os, signal, sys
from pathlib import Path
from recording import wandb_process
from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.wandb import WandbChoice, build_logger, end_run

for name in ("one", "other"):
    directory = RunDirectory(Path(sys.argv[1]) / name)
    logger = build_logger(directory, WandbChoice("offline"), "finetune")
    logger.log_metrics({"train/loss": 1.5}, step=0)
    if name == "one":
        os.kill(wandb_process(os.getpid()), signal.SIGKILL)
    logger.log_metrics({"train/loss": 1.25}, step=1)
    end_run(directory, None)
"""


def test_the_next_run_of_a_process_has_w_and_b_again(tmp_path: Path) -> None:
    """Each seed of a fine-tuning is a run."""
    # A process of its own: W&B never waits for its own that was killed, of which Python warns
    # whenever it finds out.
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])
    done = called(
        sys.executable, "-c", TWO_RUNS, tmp_path, env=environment(PYTHONPATH=paths), timeout=100
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done
    (found,) = records(tmp_path / "other")
    assert steps(found) == [0, 1]


# Online -------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Where somebody is logged in."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        yield server
    wandb.teardown()


def test_online_a_run_is_begun_continued_and_ended_on_the_server(
    server: Server, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    for options in ((), ("--resume", "--trainer.max_epochs", 3)):
        done = fit(directory, "--wandb", "auto", "--wandb.group", "first", *options)
        assert (done.err, "Weights & Biases" in done.out) == ("", False), done
    name = (directory / "wandb_id.txt").read_text().strip()
    started = [given for given in server.begun if given["displayName"]]
    assert [(given["name"], given["groupName"]) for given in started] == [(name, "first")] * 2
    assert server.ended == {name: 0}


def test_a_server_that_falls_silent_costs_seconds_at_the_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_pl.tracking.wandb.FINISH_TIMEOUT_S", 3.0)
    monkeypatch.setattr(Tracking, "on_train_end", lambda *args: server.silent.set(), raising=False)
    began = time.monotonic()
    done = fit(tmp_path / "run", "--wandb", "online")
    assert time.monotonic() - began < 45
    assert [line for line in done.out.splitlines() if "Weights & Biases" in line] == [
        "Weights & Biases: not all is uploaded (Timed out finishing run.); to upload: "
        f"wandb sync {tmp_path}/run/wandb/*run-*"
    ]
    assert len(rows(tmp_path / "run")) == 4
    assert len(list((tmp_path / "run").glob("wandb/*run-*/run-*.wandb"))) == 1


def test_a_run_that_was_told_to_stop_does_not_wait_for_its_models(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whose upload may take twenty times as long otherwise."""
    monkeypatch.setattr("simclr_pl.tracking.wandb.FINISH_TIMEOUT_S", 2.0)
    directory = RunDirectory(tmp_path / "run")
    logger = build_logger(directory, WandbChoice("online", log_model=True), "pretrain")
    assert logger is not None
    logger.log_metrics({"train/loss": 1.5}, step=0)
    server.silent.set()
    began = time.monotonic()
    end_run(directory, UnfinishedError("told to stop"))
    assert time.monotonic() - began < 10
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("Weights & Biases: not all is uploaded (")
    assert said.endswith(f"; to upload: wandb sync {directory.path}/wandb/*run-*")


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
def test_a_server_that_does_not_answer_costs_seconds_and_the_run_is_offline(
    silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_pl.tracking.wandb.SERVER_TIMEOUT_S", 2.0)
    with no_answer(silent, monkeypatch, 45):
        done = fit(tmp_path / "run", "--wandb", "auto")
    wandb.teardown()
    why, how = (line for line in done.out.splitlines() if "Weights & Biases" in line)
    assert why.startswith("Weights & Biases: no connection (")
    assert why.endswith("), so this run is offline")
    assert how.endswith(f"offline; to upload: wandb sync {tmp_path}/run/wandb/offline-run-*")
    (found,) = records(tmp_path / "run")
    assert steps(found) == [0, 1, 2, 3]


def test_an_artifact_that_the_server_does_not_know_is_not_linked(
    server: Server, finished: Path
) -> None:
    (finished / "wandb_id.txt").write_text("abcd1234\n")
    digest = sha256(finished / "checkpoints" / "last.ckpt")
    names = {digest: "simclr_pl/pretrain-abcd1234:epoch-2"}
    (finished / "wandb_models.json").write_text(json.dumps(names))
    short = ("--label_fraction", 0.2, "--epochs", 2, "--trainer.accelerator", "cpu")
    done = run("finetune", "--run_dir", finished, *short, "--wandb", "online")
    assert (done.code, done.err) == (0, ""), done
    said = "Weights & Biases: simclr_pl/pretrain-abcd1234:epoch-2 is not linked ("
    assert done.out.count(said) == 1


def test_an_evaluation_that_w_and_b_refuses_has_its_result_all_the_same(finished: Path) -> None:
    (finished / "wandb_id.txt").write_text("abcd1234\n")
    (finished / "wandb").write_text("in W&B's way")
    try:
        done = run("knn", "--run_dir", finished, "--split", "val", "--wandb", "offline")
    finally:
        wandb.teardown()
    assert (done.code, done.err) == (0, ""), done
    assert done.out.count("Weights & Biases: not logged there (") == 1
    assert len(list((finished / "results").glob("knn-val-*.json"))) == 1
