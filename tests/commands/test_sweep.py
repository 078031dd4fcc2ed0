"""sweep: real runs, one that fails, kills, and tables that say what their numbers are."""

import csv
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from commands import QUICK, Outcome, finish, run, signal_when, start
from run_files import checkpoint, files, rows, same_weights
from warm import Warm

from simclr_pl.commands.sweep import sweep as sweeping
from simclr_pl.commands.sweep.table import Trial, ranked

PARAMETERS = {
    "model.temperature": {"values": [0.2, -1, 0.5]},
    "seed_everything": {"value": 3},
    "trainer.max_epochs": {"value": 8},
}
"""The second run fails."""


def write(path: Path, parameters: dict[str, Any], **more: Any) -> Path:
    """A sweep's YAML, of short runs."""
    command = ["${interpreter}", "-m", "simclr_pl", "fit", *QUICK, "${args}"]
    content = {
        "method": "grid",
        "metric": {"name": "train/loss", "goal": "minimize"},
        "command": command,
        "parameters": parameters,
    }
    path.write_text(yaml.safe_dump({**content, **more}, sort_keys=False))
    return path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def _warm() -> Iterator[None]:
    """Runs of a sweep that this process makes come without imports; those of others are real."""

    def begun(words: list[str], **options: Any) -> subprocess.Popen[str]:
        return Warm(words, env=dict(os.environ), **options)

    library = SimpleNamespace(**{**vars(subprocess), "Popen": begun})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "subprocess", library)
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Outcome]:
    """A sweep that has ended: YAML, folder, what it said."""
    home = tmp_path_factory.mktemp("swept")
    config = write(home / "mine.yaml", PARAMETERS)
    outcome = run("sweep", "--local", "5", "--config", config, "--out", home / "out")
    return config, home / "out", outcome


# Tables -------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_each_run_has_its_directory_and_got_its_values_as_options(
    swept: tuple[Path, Path, Outcome],
) -> None:
    _, folder, outcome = swept
    assert (outcome.code, outcome.err) == (0, ""), outcome
    for name, temperature in (("000", 0.2), ("002", 0.5)):
        config = yaml.safe_load((folder / name / "config.yaml").read_text())
        assert config["model"]["temperature"] == temperature
        assert config["seed_everything"] == 3
        assert checkpoint(folder / name)["global_step"] == 16
        assert "train/loss" in (folder / name / "metrics.csv").read_text()
    assert not (folder / "001").exists()  # it never began
    assert sorted(p.name for p in folder.glob("*.log")) == ["000.log", "001.log", "002.log"]
    assert "step 16/16" in (folder / "002.log").read_text()
    assert "step 16/16" in outcome.out


@pytest.mark.processes
def test_the_table_has_the_last_value_sorted_and_failures_as_such(
    swept: tuple[Path, Path, Outcome],
) -> None:
    _, folder, outcome = swept
    found = table(folder)
    last = {name: rows(folder / name)[-1]["train/loss"] for name in ("000", "002")}
    order = sorted(last, key=lambda name: float(last[name]))
    assert [row["run"] for row in found] == [*order, "001"]
    assert {row["run"]: row["train/loss"] for row in found} == {**last, "001": ""}
    assert [row["epoch"] for row in found] == ["8", "8", ""]
    assert [row["state"] for row in found] == ["finished", "finished", "failed"]
    assert {row["seed_everything"] for row in found} == {"3"}
    assert found[-1]["model.temperature"] == "-1"
    assert "temperature" in found[-1]["failure"]
    text = (folder / "runs.md").read_text()
    assert text in outcome.out
    lines = text.splitlines()
    assert lines[0] == "| run | model.temperature | train/loss | epoch | state |"
    assert f"| {float(found[0]['train/loss']):.4f} | 8 | finished |" in lines[2]
    assert "failed: " + found[-1]["failure"] in lines[4]
    assert "3 of 3 runs of mine.yaml (grid search), sorted by `train/loss` (minimize)" in text
    assert "last value" in text
    assert "not its best" in text
    assert "these losses don't compare" in text


def test_the_best_is_first_whatever_the_goal_and_nan_is_never_best() -> None:
    numbers = {"a": 1.0, "b": float("nan"), "c": 3.0, "d": None, "e": 2.0}
    trials = [Trial(name, {}, value, 1, "") for name, value in numbers.items()]
    assert "".join(t.run for t in ranked(trials, "minimize")) == "aecbd"
    assert "".join(t.run for t in ranked(trials, "maximize")) == "ceabd"


# Going on -----------------------------------------------------------------------------------------


@pytest.mark.processes
def test_a_sweep_is_not_written_over_and_resumes_as_itself_alone(
    swept: tuple[Path, Path, Outcome], tmp_path: Path
) -> None:
    config, folder, _ = swept
    before = files(folder)
    sweep = ("sweep", "--local", "3", "--out", folder)
    assert "add --resume to go on with it" in run(*sweep, "--config", config).sentence
    other = write(tmp_path / "other.yaml", {"model.temperature": {"values": [0.1]}})
    sentence = run(*sweep, "--config", other, "--resume").sentence
    assert "parameters was another one" in sentence
    after = files(folder)
    assert before.pop("lock") == after.pop("lock") == b""
    assert before == after


@pytest.mark.processes
def test_resume_tries_what_failed_again_and_nothing_else(swept: tuple[Path, Path, Outcome]) -> None:
    config, folder, _ = swept
    finished = {name: content for name, content in files(folder).items() if "000" in name}
    sweep = ("sweep", "--local", "2", "--config", config, "--out", folder, "--resume")
    outcome = run(*sweep)
    assert outcome.code == 0, outcome
    assert "run 2 of 3" in outcome.out
    assert "run 1 of 3" not in outcome.out
    assert len(table(folder)) == 3  # what has ended is in the table, however few are asked for
    assert {name: c for name, c in files(folder).items() if "000" in name} == finished


def test_a_sweep_that_is_killed_and_interrupted_goes_on_to_the_same_table(
    swept: tuple[Path, Path, Outcome], tmp_path: Path
) -> None:
    _, whole, _ = swept
    folder, config = tmp_path / "out", tmp_path / "mine.yaml"
    write(config, {**PARAMETERS, "model.temperature": {"values": [0.2, 0.5]}})
    sweep = ("sweep", "--local", "2", "--config", config, "--out", folder, "--resume")
    last = [folder / name / "checkpoints" / "last.ckpt" for name in ("000", "001")]

    def ended(number: signal.Signals) -> Outcome:
        """How the sweep ends by a signal, sent when the second run has saved something."""
        before = last[1].stat().st_mtime_ns if last[1].exists() else 0
        process = start(*sweep, start_new_session=True, stdout=subprocess.DEVNULL)
        saved = lambda: last[1].exists() and last[1].stat().st_mtime_ns != before  # noqa: E731
        signal_when(process, saved, number)
        state = json.loads((folder / "sweep.json").read_text())["ended"]
        assert state == {"000": "done"}
        return finish(process)._replace(out="")

    assert ended(signal.SIGKILL).code == -signal.SIGKILL
    first = last[0].stat().st_mtime_ns
    interrupted = ended(signal.SIGINT)
    assert interrupted.code == 130
    said = f"interrupted in {folder / '001'}: the same command with --resume"
    assert said in interrupted.sentence
    done = run(*sweep)
    assert done.code == 0, done
    assert last[0].stat().st_mtime_ns == first
    losses = []
    for of, names in ((folder, ("000", "001")), (whole, ("000", "002"))):
        found = {row["run"]: row["train/loss"] for row in table(of)}
        losses.append([found[name] for name in names])
    assert losses[0] == losses[1]
    assert same_weights(checkpoint(folder / "001"), checkpoint(whole / "002"))


# Refusals -----------------------------------------------------------------------------------------


def test_two_sweeps_don_t_share_a_folder(tmp_path: Path) -> None:
    config = write(tmp_path / "mine.yaml", PARAMETERS)
    folder = tmp_path / "out"
    folder.mkdir()
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome = run("sweep", "--local", "1", "--config", config, "--out", folder, "--resume")
    assert "is at work" in outcome.sentence
    assert [path.name for path in folder.iterdir()] == ["lock"]


@pytest.mark.processes
def test_a_metric_that_no_run_logs_ends_the_sweep_at_its_first(tmp_path: Path) -> None:
    metric = {"name": "probe/val_top", "goal": "maximize"}
    config = write(tmp_path / "mine.yaml", {"seed_everything": {"values": [1, 2]}}, metric=metric)
    outcome = run("sweep", "--local", "2", "--config", config, "--out", tmp_path / "out")
    assert "logged no probe/val_top, the metric of" in outcome.sentence
    assert "did you mean probe/val_top5 or probe/val_top1" in outcome.sentence
    assert not (tmp_path / "out" / "001").exists()


@pytest.mark.processes
def test_a_sweep_of_failures_ends_with_the_first_one_s_sentence(tmp_path: Path) -> None:
    config = write(tmp_path / "mine.yaml", {"model.temperature": {"values": [-1]}})
    outcome = run("sweep", "--local", "2", "--config", config, "--out", tmp_path / "out")
    assert "none of 1 runs finished; the first: " in outcome.sentence
    assert "temperature" in outcome.sentence
    assert table(tmp_path / "out")[0]["state"] == "failed"


def test_what_cannot_be_swept_leaves_nothing_behind(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    config = write(tmp_path / "mine.yaml", PARAMETERS, method="bayes")
    assert "grid and random" in run("sweep", "--local", "1", "--config", config, *out).sentence
    config = write(tmp_path / "mine.yaml", PARAMETERS)
    assert "at least 1 run" in run("sweep", "--local", "0", "--config", config, *out).sentence
    missing = run("sweep", "--local", "1", "--config", tmp_path / "no.yaml", *out)
    assert "there is no configuration" in missing.sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", '{"seed": 0, "sw', "[]", "{}"])
def test_what_a_sweep_has_done_is_no_longer_known(tmp_path: Path, content: str) -> None:
    config = write(tmp_path / "mine.yaml", PARAMETERS)
    (tmp_path / "out").mkdir()
    state = tmp_path / "out" / "sweep.json"
    state.write_text(content)
    args = ("--local", "1", "--config", config, "--out", tmp_path / "out", "--resume")
    sentence = run("sweep", *args).sentence
    assert f"{state} is broken" in sentence
    assert "remove it" in sentence
    assert state.read_text() == content
