"""Files of a run that were lost, emptied or cut: a resume says so, and mends what can be mended."""

import json
import os
from pathlib import Path

import pytest
from commands import QUICK, Outcome, fit, run
from run_files import checkpoint, files, rows

from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.wandb import WandbChoice, build_logger, run_id

LONGER = ("--resume", "--trainer.max_epochs", "3")

OFFLINE = ("--wandb", "offline")


def resume(directory: Path, *more: str) -> Outcome:
    """Trains an epoch more; whatever is wrong, that works without an exception's name."""
    outcome = run("fit", *QUICK, *LONGER, *more, "--run_dir", directory)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert "Error" not in outcome.out
    assert [int(row["step"]) for row in rows(directory)][-2:] == [4, 5]
    return outcome


# metrics.csv --------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    """As a disk that was full, or a machine that lost power."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:5])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def test_rows_are_on_the_disk_before_the_checkpoint_that_goes_on_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        with_rows = f"{name} {len(rows(tmp_path / 'run'))}"
        brought.append(with_rows if name == "metrics.csv" else name)

    monkeypatch.setattr(os, "fsync", note)
    fit(tmp_path / "run")
    saved = [i for i, name in enumerate(brought) if "last.ckpt" in name]
    assert len(saved) == 2
    for place, count in zip(saved, (2, 4), strict=True):
        assert f"metrics.csv {count}" in brought[:place]
    assert checkpoint(tmp_path / "run")["metrics_rows"] == 4


@pytest.mark.parametrize(("spoil", "lost"), [(os.remove, 4), (cut, 2), (zeroed, 4)])
def test_lost_rows_are_counted_by_the_resume_that_misses_them(
    finished: Path, spoil: object, lost: int
) -> None:
    assert callable(spoil)
    spoil(finished / "metrics.csv")
    said = f"metrics.csv has lost {lost} of the 4 rows logged before step 4"
    assert said in resume(finished).out
    # That is said once: the next checkpoint knows what there is.
    assert "has lost" not in fit(finished, *LONGER[:-1], "4").out


def test_nothing_is_missed_of_a_run_that_has_all_its_rows_or_is_older(finished: Path) -> None:
    assert "has lost" not in resume(finished).out


# config.yaml --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(os.remove, "missing"), (zeroed, "empty"), (lambda p: p.write_text(""), "empty")],
)
def test_a_lost_recipe_is_said_and_written_anew(finished: Path, spoil: object, word: str) -> None:
    config = finished / "config.yaml"
    whole = config.read_text()
    assert callable(spoil)
    spoil(config)
    assert f"{config} is {word}: it is written anew" in resume(finished).out
    assert config.read_text() == whole.replace("max_epochs: 2", "max_epochs: 3")


def test_another_model_is_no_resume_though_the_recipe_is_lost(finished: Path) -> None:
    (finished / "config.yaml").unlink()
    before = files(finished)
    other = ("--model.temperature", "0.4", "--run_dir", finished)
    sentence = run("fit", *QUICK, *LONGER, *other).sentence
    assert "model.temperature was 0.5" in sentence
    assert files(finished) == before


# W&B's --------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_what_is_known_of_w_and_b_is_mended(finished: Path) -> None:
    directory = RunDirectory(finished)
    directory.wandb_id.write_text("")
    directory.wandb_models.write_text('{"a": 1, "b')
    outcome = resume(finished, *OFFLINE, "--wandb.log_model", "true")
    assert f"{directory.wandb_models} is broken, and what it held is left out" in outcome.out
    assert len(run_id(directory)) == 8
    # What is logged from here on is kept, in a file that is whole again.
    assert len(json.loads(directory.wandb_models.read_text())) == 1


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0\0\0\0\0\0", b"\xff\xfe"])
def test_an_id_that_is_lost_is_no_id(tmp_path: Path, content: bytes) -> None:
    directory = RunDirectory(tmp_path)
    directory.wandb_id.write_bytes(content)
    assert run_id(directory) == ""
    assert build_logger(directory, WandbChoice("off"), "pretrain") is None
