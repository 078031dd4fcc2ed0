"""Results of evaluations in the run's W&B summary, online and offline."""

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
from offline import begun, history, recipe, records, summary
from wandb_server import no_answer, wandb_server

from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.evaluations import append_to_summary
from simclr_pl.tracking.wandb import WandbChoice, build_logger


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
    monkeypatch.setattr("simclr_pl.tracking.evaluations.PATIENCE", 2.0)
    with no_answer(server == "never answers", monkeypatch, 30):
        append_to_summary(trained, NUMBERS)
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
    other = write_npz(tmp_path / "other.npz", 8, 8, classes=2, train=60)
    data = ("--data.dataset", "npz", "--data.root", other)
    try:
        assert run("knn", "--run_dir", finished, "--split", "val", *data).code == 0
        (part,) = parts(directory)
    finally:
        wandb.teardown()
    names = {name for name in summary(part) if name.startswith("npz/")}
    assert names == {"npz/knn_chosen/val_top1"}  # two classes have no top-5
