"""W&B runs: offline without an account, no prompt, no hang, and all numbers in it."""

import json
import os
import pty
import time
from pathlib import Path

import pytest
import wandb
from commands import QUICK, environment, finish, run, start
from lightning.pytorch.loggers import WandbLogger
from offline import begun, history, recipe, records
from run_files import rows

from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.wandb import WandbChoice, build_logger, end_run
from simclr_pl.tracking.wandb_mode import resolve_mode


def log_once(logger: WandbLogger | None) -> None:
    assert logger is not None
    try:
        logger.log_metrics({"train/loss": 1.5}, step=7)
        logger.experiment.finish()
    finally:
        wandb.teardown()


def auto(directory: Path, *args: object) -> tuple[object, ...]:
    """A run that was told nothing about W&B."""
    known = QUICK[: QUICK.index("--wandb")]
    return ("fit", *known, "--run_dir", directory, *args)


def test_a_logger_keeps_its_run_and_its_id_in_the_run_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    logger = build_logger(directory, WandbChoice("offline", project="project"), "pretrain")
    log_once(logger)
    (found,) = records(directory.path)
    (row,) = history(found)
    assert (row["train/loss"], row["trainer/global_step"]) == (1.5, 7)
    assert directory.wandb_id.read_text().strip() == logger.version


def test_a_run_is_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODE": "Offline", "PROJECT": "images", "NAME": "the first"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    try:
        assert build_logger(RunDirectory(tmp_path / "run"), WandbChoice(), "pretrain") is not None
        end_run(RunDirectory(tmp_path / "run"), None)
    finally:
        wandb.teardown()
    monkeypatch.delenv("WANDB_MODE")  # W&B's own program knows no such word
    (found,) = records(tmp_path / "run")
    run = begun(found)
    assert (run["project"], run["display_name"]) == ("images", "the first")


@pytest.mark.parametrize(
    ("variables", "kept", "expected"),
    [
        ({"WANDB_SWEEP_ID": "s7", "WANDB_RUN_ID": "given1"}, "", "given1"),
        ({"WANDB_SWEEP_ID": "s7", "WANDB_RUN_ID": "given1"}, "kept1", "given1"),
        ({}, "kept1", "kept1"),
        ({"WANDB_RUN_ID": "given1"}, "kept1", "kept1"),
    ],
)
def test_in_a_sweep_the_id_is_the_server_s_and_else_the_one_that_is_kept(
    variables: dict[str, str],
    kept: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    directory = RunDirectory(tmp_path / "run")
    if kept:
        directory.path.mkdir()
        directory.wandb_id.write_text(f"{kept}\n")
    try:
        assert build_logger(directory, WandbChoice("offline"), "pretrain") is not None
        end_run(directory, None)
    finally:
        wandb.teardown()
    (found,) = records(directory.path)
    assert begun(found)["run_id"] == directory.wandb_id.read_text().strip() == expected


def test_a_server_that_does_not_answer_costs_seconds_and_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("simclr_pl.tracking.wandb.SERVER_TIMEOUT_S", 2.0)
    assert resolve_mode("auto") == "online"
    begun = time.monotonic()
    logger = build_logger(RunDirectory(tmp_path), WandbChoice("online"), "pretrain")
    log_once(logger)
    assert time.monotonic() - begun < 30
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("Weights & Biases: no connection (")
    assert said[1] == (
        f"Weights & Biases: offline; to upload: wandb sync {tmp_path}/wandb/offline-run-*"
    )
    (found,) = records(tmp_path)
    assert [row["train/loss"] for row in history(found)] == [1.5]


@pytest.mark.processes
def test_asked_to_be_online_without_a_key_a_run_is_offline_and_nobody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert build_logger(RunDirectory(tmp_path), WandbChoice("online"), "pretrain")
        end_run(RunDirectory(tmp_path), None)
    finally:
        wandb.teardown()
    assert capsys.readouterr().out.splitlines() == [
        "Weights & Biases: no connection (nobody is logged in), so this run is offline",
        f"Weights & Biases: offline; to upload: wandb sync {tmp_path}/wandb/offline-run-*",
    ]


def test_what_is_out_of_order_offline_too_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("in W&B's way")
    outcome = run(*auto(tmp_path / "run"))
    assert (outcome.code, outcome.err) == (0, ""), outcome
    (said,) = [line for line in outcome.out.splitlines() if "Weights & Biases" in line]
    assert said.startswith("Weights & Biases: not logged there (")
    assert len(rows(tmp_path / "run")) == 4


def test_turned_off_there_is_no_logger_and_no_file(tmp_path: Path) -> None:
    assert build_logger(RunDirectory(tmp_path), WandbChoice("off"), "pretrain") is None
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run in a terminal, resumed without one, by somebody who is not logged in.

    Returns:
        Its directory, and what each of the two sessions printed.
    """
    home = tmp_path_factory.mktemp("home")
    directory = home / "run"
    own = {f"WANDB_{name}_DIR": str(home / "wandb") for name in ("DATA", "CACHE", "CONFIG")}
    nobody = environment(HOME=str(home), NETRC=str(home / "none"), **own)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "PL_GLOBAL_SEED", "SIMCLR_PL_RUN_DIR"):
        nobody.pop(name, None)

    master, slave = pty.openpty()
    ends = {"stdin": slave, "stdout": slave, "stderr": slave, "text": False}
    process = start(*auto(directory), env=nobody, **ends)
    os.close(slave)
    drawn = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # it has ended
            break
        if not piece:
            break
        drawn += piece
    os.close(master)
    assert process.wait(60) == 0, drawn
    second = finish(start(*auto(directory, "--resume", "--trainer.max_epochs", "3"), env=nobody))
    assert second.code == 0, second
    assert second.err == ""
    return directory, drawn.decode(), second.out


def test_one_line_says_that_it_is_offline_and_how_to_upload(resumed: tuple[Path, str, str]) -> None:
    directory, *outputs = resumed
    for output in outputs:
        said = [line.strip() for line in output.splitlines() if "wandb" in line.lower()]
        said += [line for line in output.splitlines() if "Weights & Biases" in line]
        assert set(said) == {
            f"Weights & Biases: offline; to upload: wandb sync {directory}/wandb/offline-run-*"
        }


def test_nobody_is_asked_to_log_in_not_even_in_a_terminal(resumed: tuple[Path, str, str]) -> None:
    _, in_terminal, _ = resumed
    for prompt in ("(1)", "Enter your choice", "API key", "account"):
        assert prompt not in in_terminal


def test_the_offline_run_holds_the_metrics_against_the_trainers_step(
    resumed: tuple[Path, str, str],
) -> None:
    directory, _, _ = resumed
    first, second = records(directory)
    logged = history(first) + history(second)
    keys = {key for row in logged for key in row}
    assert keys >= {
        *("train/loss", "train/lr", "train/grad_norm", "train/contrastive_top1", "val/loss"),
        *("probe/val_top1", "probe/val_top5", "probe/train_top1", "trainer/global_step"),
    }
    losses = [
        (row["trainer/global_step"], row["train/loss"]) for row in logged if "train/loss" in row
    ]
    told = [(int(row["step"]), float(row["train/loss"])) for row in rows(directory)]
    assert losses == told
    assert [step for step, _ in losses] == list(range(6))


def test_a_resumed_run_is_the_same_run(resumed: tuple[Path, str, str]) -> None:
    directory, _, _ = resumed
    parts = [record["run"] for found in records(directory) for record in found if "run" in record]
    assert len(parts) >= 2
    assert {part["run_id"] for part in parts} == {(directory / "wandb_id.txt").read_text().strip()}
    # An upload goes on behind what was uploaded before, instead of over it.
    assert all(part["resume"] for part in parts)
    assert [int(row["step"]) for row in rows(directory)] == list(range(6))


def test_the_offline_run_holds_the_recipe(resumed: tuple[Path, str, str]) -> None:
    first, _ = records(resumed[0])
    assert "temperature" in json.dumps(recipe(first))


def test_a_run_that_was_told_off_writes_nothing_of_it(tmp_path: Path) -> None:
    outcome = run(*auto(tmp_path / "run", "--wandb", "off"))
    assert outcome.code == 0
    assert "Weights & Biases" not in outcome.out
    assert not any("wandb" in path.name for path in (tmp_path / "run").rglob("*"))
