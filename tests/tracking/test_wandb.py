"""Weights & Biases: offline without an account, no prompt, no hang, and all numbers in it."""

import json
import os
import pty
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from commands import QUICK, environment, finish, rows, run, start
from offline import begun, history, recipe, records, summary
from wandb_server import wandb_server

from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.evaluations import append_to_summary
from simclr_pl.tracking.wandb import WandbChoice, build_logger, end_run
from simclr_pl.tracking.wandb_mode import logged_in, resolve_mode

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
    [
        ("online", "online"),
        ("run", "online"),
        ("offline", "offline"),
        ("Offline", "offline"),
        ("dryrun", "offline"),
        ("disabled", "off"),
        ("nonsense", "offline"),
        ("", "online"),
    ],
)
def test_wandb_mode_decides_where_nothing_was_asked_for(
    named: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)  # who says something else isn't online by mistake
    monkeypatch.setenv("WANDB_MODE", named)
    assert resolve_mode("auto") == mode
    assert resolve_mode("off") == "off"
    assert resolve_mode("offline") == "offline"


@pytest.mark.parametrize(
    ("value", "mode"), [("true", "off"), ("1", "off"), ("TRUE", "off"), ("false", "online")]
)
def test_wandb_disabled_turns_it_off(
    value: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_DISABLED", value)
    assert resolve_mode("auto") == mode


@pytest.mark.parametrize(("command", "mode"), [("offline", "offline"), ("disabled", "off")])
def test_what_w_and_b_s_own_command_has_set_holds(
    command: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    outcome = subprocess.run(
        [sys.executable, "-m", "wandb", command],
        env=environment(WANDB_SILENT="true"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome
    assert resolve_mode("auto") == mode
    monkeypatch.setenv("WANDB_MODE", "online")
    assert resolve_mode("auto") == "online"


def test_the_project_is_the_environment_s_where_a_recipe_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert WandbChoice().project == "simclr_pl"
    monkeypatch.setenv("WANDB_PROJECT", "images")
    assert WandbChoice().project == "images"
    assert WandbChoice(project="letters").project == "letters"


# Runs ---------------------------------------------------------------------------------------------


def auto(directory: Path, *args: object) -> tuple[object, ...]:
    """A run that was told nothing about W&B."""
    known = QUICK[: QUICK.index("--wandb")]
    return ("fit", *known, "--run_dir", directory, *args)


def test_a_logger_keeps_its_run_and_its_id_in_the_run_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    logger = build_logger(directory, WandbChoice("offline", project="project"), "pretrain")
    assert logger is not None
    try:
        logger.log_metrics({"train/loss": 1.5}, step=7)
        logger.experiment.finish()
    finally:
        wandb.teardown()
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
    monkeypatch.setattr("simclr_pl.tracking.wandb.PATIENCE", 2.0)
    assert resolve_mode("auto") == "online"
    begun = time.monotonic()
    logger = build_logger(RunDirectory(tmp_path), WandbChoice("online"), "pretrain")
    assert logger is not None
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


# Results in the summary ---------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run of one row, offline; W&B's service ends with the test."""
    directory = RunDirectory(tmp_path / "run")
    logger = build_logger(directory, WandbChoice("offline"), "pretrain")
    assert logger is not None
    logger.log_metrics({"train/loss": 1.5, "probe/val_top1": 0.25}, step=7)
    logger.experiment.finish()
    directory.metrics.write_text("step,epoch,train/loss,probe/val_top1\n7,0,1.5,0.25\n")
    yield directory
    wandb.teardown()


def parts(directory: RunDirectory) -> list[list[dict[str, Any]]]:
    """A run's offline parts, by their time, without those of its evaluations."""
    mine = directory.wandb_id.read_text().strip()
    return [part for part in records(directory.path) if begun(part)["run_id"] == mine]


def evaluation(directory: RunDirectory) -> list[dict[str, Any]]:
    """The W&B run that an evaluation was, beside what it appended to the run's summary."""
    (appended,) = parts(directory)
    (own,) = [part for part in records(directory.path) if part != appended]
    return own


NUMBERS = {"linear/test_top1": 0.75, "linear/test_top1_std": 0.0625}


def test_offline_a_part_of_the_same_run_brings_its_whole_summary(
    trained: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is what an upload replaces the parts' before it with."""
    capsys.readouterr()
    append_to_summary(trained, NUMBERS)
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == (
        f"Weights & Biases: offline; to upload: wandb sync {trained.path}/wandb/offline-run-*\n"
    )
    _wait_a_second()  # the names of parts have no smaller unit
    append_to_summary(trained, {"knn/test_top1": 0.5, "probe/val_top1": 0.3})
    _, second, third = parts(trained)
    logged = {"train/loss": 1.5, "probe/val_top1": 0.25, "epoch": 0, "trainer/global_step": 7}
    assert summary(second) == {**logged, **NUMBERS}
    assert summary(third) == {**logged, **NUMBERS, "knn/test_top1": 0.5, "probe/val_top1": 0.3}
    assert history(second) == history(third) == []


def test_a_resumed_offline_run_keeps_what_was_appended_and_logs_its_own(
    trained: RunDirectory,
) -> None:
    append_to_summary(trained, {**NUMBERS, "probe/val_top1": 0.3})
    _wait_a_second()
    logger = build_logger(trained, WandbChoice("offline"), "pretrain")
    assert logger is not None
    logger.log_metrics({"train/loss": 1.25}, step=8)
    logger.experiment.finish()
    found = summary(parts(trained)[-1])
    assert found.items() >= {**NUMBERS, "train/loss": 1.25, "trainer/global_step": 8}.items()
    assert found["probe/val_top1"] == 0.25  # the run's own is not held back by another's


def _wait_a_second() -> None:
    time.sleep(1.1)


@pytest.mark.parametrize("case", ["disabled", "no id"])
def test_of_a_run_that_w_and_b_does_not_know_nothing_is_said_or_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(tmp_path)
    if case == "disabled":
        directory.wandb_id.write_text("abcd1234\n")
        monkeypatch.setenv("WANDB_MODE", "disabled")
    before = sorted(tmp_path.rglob("*"))
    append_to_summary(directory, NUMBERS)
    assert capsys.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_online_the_run_s_summary_is_edited_and_nothing_else(
    trained: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    name = trained.wandb_id.read_text().strip()
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        server.runs[name] = {"train/loss": 1.5}
        append_to_summary(trained, NUMBERS)
        assert server.runs[name] == {"train/loss": 1.5, **NUMBERS}
        assert [set(edit) for edit in server.edits] == [{"id", "summaryMetrics"}]
    assert "added to the summary of http://127.0.0.1" in capsys.readouterr().out
    assert len(parts(trained)) == 1


def test_a_run_that_was_never_uploaded_gets_an_offline_part(
    trained: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        append_to_summary(trained, NUMBERS)
        assert server.edits == []
    assert "Weights & Biases: not online (" in capsys.readouterr().out
    assert summary(parts(trained)[-1]).items() >= NUMBERS.items()


@pytest.mark.parametrize("server", ["nobody listens", "never answers"])
def test_without_an_answer_the_numbers_are_offline_within_seconds(
    server: str,
    trained: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("simclr_pl.tracking.evaluations.PATIENCE", 2.0)
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        if server == "never answers":
            hole.listen(8)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{hole.getsockname()[1]}")
        begun = time.monotonic()
        append_to_summary(trained, NUMBERS)
        assert time.monotonic() - begun < 30
    assert "Weights & Biases: not online (" in capsys.readouterr().out
    assert summary(parts(trained)[-1]).items() >= NUMBERS.items()


def test_asked_to_be_online_without_a_key_nobody_is_asked_for_one(
    trained: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    append_to_summary(trained, NUMBERS)
    assert summary(parts(trained)[-1]).items() >= NUMBERS.items()


def test_what_cannot_be_written_is_a_sentence_and_no_crash(
    trained: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.wandb_summary.mkdir()
    append_to_summary(trained, NUMBERS)
    assert "Weights & Biases: summary left as it was (" in capsys.readouterr().out
    assert len(parts(trained)) == 1


EVALUATIONS: dict[str, tuple[tuple[object, ...], set[str]]] = {
    "linear": (
        ("--seeds", 0, 1, "--epochs", 1, "--learning_rates", 1.0, "--weight_decays", 0),
        {f"linear/test_top{k}{end}" for k in (1, 5) for end in ("", "_std")},
    ),
    "knn": (("--split", "val"), {"knn_chosen/val_top1", "knn_chosen/val_top5"}),
    "compare": (("--draws", 2), {"logistic/val_top1"}),
    "validate": ((), {"val/loss", "probe/val_top1", "probe/val_top5"}),
    "test": ((), {"test/loss", "probe/test_top1", "probe/test_top5"}),
}


@pytest.mark.parametrize("command", EVALUATIONS)
def test_every_evaluation_s_numbers_go_into_the_run_s_summary(command: str, finished: Path) -> None:
    directory = RunDirectory(finished)
    directory.wandb_id.write_text("abcd1234\n")
    options, names = EVALUATIONS[command]
    try:
        outcome = run(command, "--run_dir", finished, *options, *_w_and_b(command))
        assert (outcome.code, outcome.err) == (0, ""), outcome
        (part,) = parts(directory)
        own = evaluation(directory)
    finally:
        wandb.teardown()
    appended = json.loads(directory.wandb_summary.read_text())
    assert set(appended) >= names
    assert outcome.out.count(f"wandb sync {finished}/wandb/") == 1
    assert summary(part).items() >= appended.items()
    values = [json.loads(path.read_text())["top1"] for path in directory.results.iterdir()]
    (top1,) = [name for name in names if name.endswith("_top1")]
    assert appended[top1] == pytest.approx(statistics.mean(values))
    job = {"compare": "logistic", "validate": "probe", "test": "probe"}.get(command, command)
    assert begun(own)["job_type"] == job
    assert summary(own) == appended
    told = recipe(own)
    split = "val" if any("val" in name for name in names) else "test"
    assert (told["pretraining"], told["split"], told["dataset"]) == ("abcd1234", split, "digits")
    assert told["artifact"] is None


def _w_and_b(command: str) -> tuple[str, ...]:
    """The finished run was trained with it turned off, which these two would go by."""
    return ("--wandb", "auto") if command in ("validate", "test") else ()


@pytest.mark.parametrize("command", ["test", "knn"])
def test_a_run_without_w_and_b_is_evaluated_without(command: str, finished: Path) -> None:
    outcome = run(command, "--run_dir", finished)
    assert outcome.code == 0
    assert "Weights & Biases" not in outcome.out
    assert not list(finished.glob("wandb*"))


def test_another_data_set_s_numbers_say_which_it_is(finished: Path, tmp_path: Path) -> None:
    directory = RunDirectory(finished)
    directory.wandb_id.write_text("abcd1234\n")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    arrays = {"train_images": pixels, "train_labels": np.arange(60) % 2}
    np.savez(tmp_path / "other.npz", **arrays)
    data = ("--data.dataset", "npz", "--data.root", tmp_path / "other.npz")
    try:
        assert run("knn", "--run_dir", finished, "--split", "val", *data).code == 0
        (part,) = parts(directory)
    finally:
        wandb.teardown()
    names = {name for name in summary(part) if name.startswith("npz/")}
    assert names == {"npz/knn_chosen/val_top1"}  # two classes have no top-5
