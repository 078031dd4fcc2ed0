"""A run directory: one run each, nothing lost, nothing left of a run that never began."""

import math
import os
import re
from pathlib import Path

import pytest
import yaml
from commands import QUICK, fit, run
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from run_files import RUN_FILES, checkpoint, files, rows

from simclr_pl.core.errors import UserError
from simclr_pl.run.directory import RunDirectory, choose_directory

# The rules, by themselves
# --------------------------------------------------------------------------


def test_claiming_makes_the_directory_and_discarding_takes_it_back(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b" / "run")
    directory.claim(resume=False)
    assert directory.path.is_dir()
    directory.pictures.mkdir()
    directory.config.write_text("x")
    directory.discard()
    assert list(tmp_path.iterdir()) == []


def test_discarding_keeps_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "run" / "notes").mkdir(parents=True)
    (tmp_path / "run" / "notes" / "idea.txt").write_text("mine")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "run" / "notes")
    before = files(tmp_path)
    directory = RunDirectory(tmp_path / "run")
    directory.claim(resume=False)
    directory.config.write_text("new")
    (directory.path / "newer").symlink_to(tmp_path / "run" / "notes")
    directory.discard()
    assert files(tmp_path) == before
    assert (tmp_path / "run" / "link").is_symlink()
    assert not (directory.path / "newer").exists()


def test_discarding_leaves_a_parent_into_which_another_run_has_moved(tmp_path: Path) -> None:
    first, second = (RunDirectory(tmp_path / "runs" / name) for name in ("first", "second"))
    first.claim(resume=False)
    second.claim(resume=False)
    first.discard()
    assert not first.path.exists()
    assert second.path.is_dir()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "checkpoints/last.ckpt"])
def test_a_directory_with_any_part_of_a_run_holds_one(tmp_path: Path, name: str) -> None:
    directory = RunDirectory(tmp_path)
    assert not directory.holds_run
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    assert directory.holds_run
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        directory.claim(resume=False)
    directory.claim(resume=True)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        RunDirectory(tmp_path / "run").claim(resume=False)
    with pytest.raises(UserError, match="cannot be made a run directory"):
        RunDirectory(tmp_path / "run" / "below").claim(resume=False)


def test_discarding_without_a_claim_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("x")
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError):
        directory.claim(resume=False)
    directory.discard()
    assert files(tmp_path) == {"config.yaml": b"x"}


def test_a_directory_in_which_a_checkpoint_lies_is_never_deleted(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.claim(resume=False)
    directory.config.write_text("x")
    directory.last_checkpoint.parent.mkdir()
    directory.last_checkpoint.write_text("of another process, which this one knows nothing of")
    directory.discard()
    assert files(tmp_path).keys() == {"run/config.yaml", "run/checkpoints/last.ckpt"}


def test_a_resume_that_fails_takes_back_what_is_new_unless_a_checkpoint_is(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.last_checkpoint.parent.mkdir(parents=True)
    directory.last_checkpoint.write_text("old")
    before = files(tmp_path)
    again = RunDirectory(tmp_path / "run")
    again.claim(resume=True)
    again.config.write_text("x")
    again.discard()
    assert files(tmp_path) == before
    again = RunDirectory(tmp_path / "run")
    again.claim(resume=True)
    again.config.write_text("x")
    os.utime(directory.last_checkpoint, ns=(0, 0))  # written anew
    again.discard()
    assert again.config.exists()


def test_by_default_a_run_is_named_by_config_and_time_and_never_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = set()
    for _ in range(4):
        directory = choose_directory(None, "digits")
        directory.claim(resume=False)
        taken.add(directory.path)
    assert len(taken) == 4
    for path in taken:
        assert re.fullmatch(r"runs/digits/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d)?", str(path))


def test_other_ranks_take_the_directory_that_rank_zero_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = choose_directory(None, "digits")
    chosen.claim(resume=False)
    chosen.config.write_text("rank 0 is quicker")
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    other = choose_directory(None, "digits")
    assert other.path == chosen.path
    other.claim(resume=False)  # deciding is rank 0's business
    other.discard()
    assert chosen.config.exists()


# The rules, on the command line
# --------------------------------------------------------------------


def test_fit_without_run_dir_writes_below_runs_by_the_configs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data: {flip: 0.0}")
    outcome = run("fit", "--config", "mine.yaml", *QUICK, "--trainer.max_epochs", "1")
    assert outcome.code == 0, outcome
    (made,) = (tmp_path / "runs" / "mine").iterdir()
    assert set(files(made)) == RUN_FILES
    assert f"run directory  runs/mine/{made.name}" in outcome.out
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "runs"}


def test_a_directory_that_holds_a_run_is_refused_and_untouched(finished: Path) -> None:
    before = files(finished)
    sentence = run("fit", *QUICK, "--run_dir", finished).sentence
    assert f"{finished} already holds a run" in sentence
    assert "--resume" in sentence
    assert files(finished) == before


def test_a_run_that_fails_before_its_first_step_leaves_a_directory_as_it_was(
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    too_large = ("--data.batch_size", "5000")  # found when the data has been read
    assert run("fit", *QUICK, *too_large, "--run_dir", tmp_path / "run").code != 0
    assert files(tmp_path) == {"run/notes.txt": b"mine"}
    fit(tmp_path / "run")
    assert files(tmp_path)["run/notes.txt"] == b"mine"


def test_resume_needs_to_be_told_which_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--resume needs --run_dir" in run("fit", *QUICK, "--resume").sentence
    assert list(tmp_path.iterdir()) == []


def test_resume_starts_a_run_where_there_is_none(source: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", "--resume")
    assert rows(tmp_path / "run") == rows(source)


def test_resume_starts_over_where_a_run_was_killed_before_its_first_checkpoint(
    source: Path, finished: Path
) -> None:
    (finished / "checkpoints" / "last.ckpt").unlink()
    fit(finished, "--resume")
    assert rows(finished) == rows(source)


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = files(finished)
    fit(finished, "--resume")
    assert files(finished) == before


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("model.temperature", "0.4", "0.5"),
        ("model.learning_rate", "0.06", "0.05"),
        ("data.batch_size", "64", "128"),
        ("data.flip", "0.25", "0.5"),
        ("seed_everything", "1", "0"),
        ("trainer.limit_train_batches", "3", "2"),
        ("probe.learning_rate", "0.01", "0.001"),
    ],
)
def test_resuming_another_recipe_is_refused_by_its_key(
    finished: Path, key: str, value: str, was: str
) -> None:
    before = files(finished)
    outcome = run("fit", *QUICK, f"--{key}", value, "--resume", "--run_dir", finished)
    assert f"{key} was {was} in {finished} and is {value} now" in outcome.sentence
    assert "another --run_dir" in outcome.sentence
    assert files(finished) == before


def test_a_resume_may_change_workers_logging_and_when_checkpoints_are_written(
    finished: Path,
) -> None:
    free = (
        *("--data.num_workers", "0", "--trainer.log_every_n_steps", "2"),
        *("--checkpoint.keep_every_n_epochs", "1", "--trainer.devices", "1"),
    )
    outcome = fit(finished, "--resume", *free)
    assert "schedule" not in outcome.out


def test_a_resume_with_more_epochs_says_where_the_schedule_ends_now(finished: Path) -> None:
    outcome = fit(finished, "--resume", "--trainer.max_epochs", "4")
    assert "The schedule's end moves from epoch 2 to 4" in outcome.out
    assert checkpoint(finished)["global_step"] == 8
    assert [int(row["step"]) for row in rows(finished)] == list(range(8))
    # Half of the new cosine is done: it goes on from half the peak, not from the old end's zero.
    rates = [float(row["train/lr"]) for row in rows(finished)[4:]]
    cosine = [0.025 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(4, 8)]
    assert rates == pytest.approx(cosine, rel=1e-5)
    assert yaml.safe_load((finished / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_a_resume_that_fails_before_its_first_step_loses_nothing(finished: Path) -> None:
    before = files(finished)
    longer = ("--trainer.max_epochs", "4")
    loaded = before["config.yaml"].replace(b"batch_size: 128", b"batch_size: 5000")
    (finished / "config.yaml").write_bytes(loaded)  # so that the recipes agree, and fail late
    outcome = run(
        "fit", *QUICK, "--data.batch_size", "5000", *longer, "--resume", "--run_dir", finished
    )
    assert "data.batch_size is 5000" in outcome.sentence
    after = files(finished)
    for name in ("metrics.csv", "checkpoints/last.ckpt"):
        assert after[name] == before[name]
    assert set(after) == set(before)
