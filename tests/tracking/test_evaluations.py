"""Evaluations told to W&B: each a run of its own, offline or not, that names what it used."""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from commands import run
from noise import write_npz
from offline import begun, recipe, records, summary
from wandb_server import no_answer

from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.evaluations import log_evaluation
from simclr_pl.tracking.wandb import WandbChoice, build_logger
from simclr_pl.tracking.wandb_mode import Mode


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


def of_run(directory: RunDirectory) -> list[list[dict[str, Any]]]:
    """A run's offline parts, by their time, without its evaluations."""
    mine = directory.wandb_id.read_text().strip()
    return [part for part in records(directory.path) if begun(part)["run_id"] == mine]


def of_evaluations(directory: RunDirectory) -> list[list[dict[str, Any]]]:
    """The W&B runs of a run's evaluations."""
    mine = of_run(directory)
    return [part for part in records(directory.path) if part not in mine]


NUMBERS = {"linear/test_top1": 0.75, "linear/test_top1_std": 0.0625}


def evaluate(directory: RunDirectory, asked: Mode = "auto") -> None:
    """Logs `NUMBERS` as a linear evaluation of test."""
    directory.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
    directory.last_checkpoint.touch()
    about = {"checkpoint": directory.last_checkpoint, "split": "test", "dataset": "digits"}
    log_evaluation(directory, "linear", NUMBERS, about, asked)


def test_offline_an_evaluation_is_a_run_that_knows_the_recipe_and_leaves_the_run_alone(
    trained: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.config.write_text("wandb: {project: letters}\nmodel: {temperature: 0.3}\n")
    capsys.readouterr()
    evaluate(trained)
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == (
        f"Weights & Biases: offline; to upload: wandb sync {trained.path}/wandb/offline-run-*\n"
    )
    (own,) = of_evaluations(trained)
    assert summary(own) == NUMBERS
    assert (begun(own)["job_type"], begun(own)["project"]) == ("linear", "letters")
    assert recipe(own)["recipe"]["model"] == {"temperature": 0.3}
    assert len(of_run(trained)) == 1


def test_a_resumed_offline_run_brings_its_whole_summary(trained: RunDirectory) -> None:
    """Which is what an upload replaces the summary of the parts before it with."""
    time.sleep(1.1)  # the names of parts have no smaller unit than a second
    logger = build_logger(trained, WandbChoice("offline"), "pretrain")
    assert logger is not None
    logger.log_metrics({"train/loss": 1.25}, step=8)
    logger.experiment.finish()
    assert summary(of_run(trained)[-1]) == {
        "train/loss": 1.25, "probe/val_top1": 0.25, "epoch": 0, "trainer/global_step": 8,
    }  # fmt: skip


@pytest.mark.parametrize("case", ["disabled", "no id"])
def test_of_a_run_that_w_and_b_does_not_know_nothing_is_said_or_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(tmp_path)
    if case == "disabled":
        directory.wandb_id.write_text("abcd1234\n")
        monkeypatch.setenv("WANDB_MODE", "disabled")
    evaluate(directory)
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.glob("wandb/*"))


@pytest.mark.parametrize("server", ["nobody listens", "never answers"])
def test_without_an_answer_the_numbers_are_offline_within_seconds(
    server: str,
    trained: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("simclr_pl.tracking.wandb.SERVER_TIMEOUT_S", 2.0)
    with no_answer(server == "never answers", monkeypatch, 30):
        evaluate(trained)
    assert "Weights & Biases: no connection (" in capsys.readouterr().out
    (own,) = of_evaluations(trained)
    assert summary(own) == NUMBERS


def test_asked_to_be_online_without_a_key_nobody_is_asked_for_one(trained: RunDirectory) -> None:
    evaluate(trained, "online")
    (own,) = of_evaluations(trained)
    assert summary(own) == NUMBERS


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
def test_every_evaluation_is_a_run_with_its_numbers(command: str, finished: Path) -> None:
    directory = RunDirectory(finished)
    directory.wandb_id.write_text("abcd1234\n")
    options, names = EVALUATIONS[command]
    try:
        outcome = run(command, "--run_dir", finished, *options, *_w_and_b(command))
        assert (outcome.code, outcome.err) == (0, ""), outcome
        (own,) = records(finished)
    finally:
        wandb.teardown()
    assert outcome.out.count(f"wandb sync {finished}/wandb/") == 1
    numbers = summary(own)
    assert set(numbers) >= names
    values = [json.loads(path.read_text())["top1"] for path in directory.results.iterdir()]
    (top1,) = [name for name in names if name.endswith("_top1")]
    assert numbers[top1] == pytest.approx(statistics.mean(values))
    job = {"compare": "logistic", "validate": "probe", "test": "probe"}.get(command, command)
    assert begun(own)["job_type"] == job
    told = recipe(own)
    split = "val" if any("val" in name for name in names) else "test"
    assert (told["pretraining"], told["split"], told["dataset"]) == ("abcd1234", split, "digits")
    assert told["recipe"]["model"]["temperature"] == 0.5
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
    other = write_npz(tmp_path / "other.npz", 8, 8, classes=2, train=60)
    data = ("--data.dataset", "npz", "--data.root", other)
    try:
        assert run("knn", "--run_dir", finished, "--split", "val", *data).code == 0
        (own,) = records(finished)
    finally:
        wandb.teardown()
    names = {name for name in summary(own) if name.startswith("npz/")}
    assert names == {"npz/knn_chosen/val_top1"}  # two classes have no top-5
