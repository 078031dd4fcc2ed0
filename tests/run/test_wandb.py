"""Weights & Biases: offline without an account, no prompt, no hang, and all numbers in it."""

import json
import os
import pty
import time
from pathlib import Path

import pytest
import wandb
from commands import QUICK, environment, finish, rows, run, start
from offline import history, recipe, records

from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.wandb import build_logger, logged_in, resolve_mode

# Who is logged in ---------------------------------------------------------------------------------


def test_nobody_is_logged_in_here() -> None:
    assert not logged_in()
    assert resolve_mode("auto") == "offline"


def test_a_key_in_the_environment_logs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in()
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_a_key_in_the_netrc_file_logs_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    if name == "elsewhere":
        monkeypatch.setenv("NETRC", str(home / name))
    (home / name).write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    (home / name).chmod(0o600)
    assert logged_in()
    assert resolve_mode("auto") == "online"


def test_a_key_for_another_server_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine wandb.example.org\n  login user\n  password {'0' * 40}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert not logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/api")
    assert logged_in()


def test_a_broken_netrc_file_is_nobody_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine machine api.wandb.ai pass word")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not logged_in()


@pytest.mark.parametrize(
    ("named", "mode"),
    [("online", "online"), ("offline", "offline"), ("disabled", "off"), ("nonsense", "offline")],
)
def test_wandb_mode_decides_where_nothing_was_asked_for(
    named: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", named)
    assert resolve_mode("auto") == mode
    assert resolve_mode("off") == "off"
    assert resolve_mode("offline") == "offline"


# Runs ---------------------------------------------------------------------------------------------


def auto(directory: Path, *args: object) -> tuple[object, ...]:
    """A run that was told nothing about W&B."""
    known = QUICK[: QUICK.index("--wandb")]
    return ("fit", *known, "--run_dir", directory, *args)


def test_a_logger_keeps_its_run_and_its_id_in_the_run_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    logger = build_logger("offline", directory, "project", "name")
    try:
        logger.log_metrics({"train/loss": 1.5}, step=7)
        logger.experiment.finish()
    finally:
        wandb.teardown()
    (found,) = records(directory.path)
    (row,) = history(found)
    assert (row["train/loss"], row["trainer/global_step"]) == (1.5, 7)
    assert directory.wandb_id.read_text().strip() == logger.version


def test_a_server_that_does_not_answer_costs_seconds_and_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("simclr_pl.run.wandb.PATIENCE", 2.0)
    assert resolve_mode("auto") == "online"
    begun = time.monotonic()
    logger = build_logger("online", RunDirectory(tmp_path), "project", "name")
    try:
        logger.log_metrics({"train/loss": 1.5}, step=7)
        logger.experiment.finish()
    finally:
        wandb.teardown()
    assert time.monotonic() - begun < 30
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("Weights & Biases: no connection (")
    assert said[1] == (
        f"Weights & Biases: offline; to upload: wandb sync {tmp_path}/wandb/offline-run-*"
    )
    (found,) = records(tmp_path)
    assert [row["train/loss"] for row in history(found)] == [1.5]


def test_turned_off_there_is_no_logger_and_no_file(tmp_path: Path) -> None:
    assert build_logger("off", RunDirectory(tmp_path), "project", "name") is None
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


def test_one_line_says_that_it_is_offline_and_how_to_upload(
    resumed: tuple[Path, str, str],
) -> None:
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
    ids = [
        record["run"]["run_id"]
        for found in records(directory)
        for record in found
        if record["type"] == "run"
    ]
    assert len(ids) >= 2
    assert set(ids) == {(directory / "wandb_id.txt").read_text().strip()}
    assert [int(row["step"]) for row in rows(directory)] == list(range(6))


def test_the_offline_run_holds_the_recipe(resumed: tuple[Path, str, str]) -> None:
    first, _ = records(resumed[0])
    assert "temperature" in json.dumps(recipe(first))


def test_a_run_that_was_told_off_writes_nothing_of_it(tmp_path: Path) -> None:
    outcome = run(*auto(tmp_path / "run", "--wandb", "off"))
    assert outcome.code == 0
    assert "Weights & Biases" not in outcome.out
    assert not any("wandb" in path.name for path in (tmp_path / "run").rglob("*"))
