"""finetune over devices, kills and resumes: the same training to the bit."""

import io
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import DRAWING, finish, fit, run, signal_when, start
from finetuning import (
    FAST,
    STEPS,
    as_rank,
    assert_same_bits,
    curve,
    distance,
    finetune,
    home,
    npz,
    weights,
)
from ranks import ranks
from run_files import checkpoint, files, result, rows, same_weights

pytestmark = pytest.mark.long

# Devices ------------------------------------------------------------------------------------------

DOUBLE = ("--trainer.precision", "64-true", "--learning_rate", "1.0", "--weight_decay", "1e-3")
"""Float64, and steps that are large enough to leave the start behind."""


def on_devices(run_dir: Path, devices: int, *args: object) -> None:
    command = (
        "finetune",
        *FAST,
        *DOUBLE,
        "--run_dir",
        run_dir,
        "--trainer.devices",
        devices,
        *args,
    )
    outcomes = ranks(devices, as_rank, *command, timeout=120)
    assert {(o.code, o.err) for o in outcomes} == {(0, "")}, outcomes
    assert [bool(o.out) for o in outcomes] == [True, *[False] * (devices - 1)]


def assert_same_end(one: Path, other: Path, name: str = "finetune-0.1", seed: int = 0) -> None:
    """The same training and the same accuracies, to float64's rounding."""
    a, b = (home(path, f"{name}-seed{seed}") for path in (one, other))
    assert checkpoint(a)["global_step"] == checkpoint(b)["global_step"] == STEPS
    assert distance(a, b) < 1e-9
    for row, twin in zip(rows(a), rows(b), strict=True):
        assert row.keys() == twin.keys()
        for key in row:
            assert float(twin[key]) == pytest.approx(float(row[key]), rel=1e-6), key
    scores = [result(p / "results" / f"{name}-test-seed{seed}.json") for p in (one, other)]
    for key in ("top1", "top5", "labels", "epochs"):
        assert scores[0][key] == scores[1][key]
    # It says something: the network is another than it was.
    assert max(curve(a)) - min(curve(a)) > 0.01


@pytest.mark.ddp
def test_three_devices_train_and_score_as_one(source: Path, tmp_path: Path) -> None:
    """43 images over three devices are 14, 14 and 15; 339 test images don't divide either."""
    for devices in (1, 3):
        shutil.copytree(source, tmp_path / str(devices))
    finetune("--run_dir", tmp_path / "1", *DOUBLE, "--trainer.devices", 1)
    on_devices(tmp_path / "3", 3)
    assert_same_end(tmp_path / "1", tmp_path / "3")


@pytest.mark.ddp
def test_one_command_starts_two_devices_for_one_seed_after_the_other(
    source: Path, tmp_path: Path
) -> None:
    for devices in (1, 2):
        shutil.copytree(source, tmp_path / str(devices))
    more = (*DOUBLE, "--from_projector_layer", 1, "--seeds", 0, 1)
    finetune("--run_dir", tmp_path / "1", *more, "--trainer.devices", 1)
    command = ("finetune", *FAST, *more, "--run_dir", tmp_path / "2", "--trainer.devices", 2)
    outcome = finish(start(*command), timeout=240)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert outcome.out.count("seed 1: top1") == 1  # rank 0 alone speaks
    for seed in (0, 1):
        assert_same_end(tmp_path / "1", tmp_path / "2", "finetune-projector1-0.1", seed)


# Kills and resumes --------------------------------------------------------------------------------

LONG = ("--epochs", "40", "--learning_rate", "0.3")
"""120 steps, with a checkpoint in every twelfth."""


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose encoder draws random numbers in training."""
    directory = tmp_path_factory.mktemp("drawing") / "run"
    fit(directory, "--model.encoder_args", DRAWING)
    return directory


def test_killed_and_resumed_it_ends_as_if_left_alone(drawing: Path, tmp_path: Path) -> None:
    command = ("--checkpoint", weights(drawing), *LONG)
    killed = tmp_path / "killed"
    process = start("finetune", *FAST, *command, "--seeds", 0, 1, "--out", killed)
    first, second = (killed / f"finetune-0.1-seed{seed}" for seed in (0, 1))
    # In mid-epoch and between two checkpoints of the second seed; the first one is done.
    signal_when(
        process,
        lambda: len(rows(second)) > 36 and len(rows(second)) % 12 in (4, 5, 7),
        signal.SIGKILL,
    )
    assert finish(process).code == -signal.SIGKILL
    saved, reached = checkpoint(second)["global_step"], len(rows(second))
    assert 36 <= saved <= reached < 120
    before = files(first)
    printed = finetune(*command, "--seeds", 0, 1, "--out", killed, "--resume").out
    assert printed.count("nothing left to train") == 1
    assert files(first) == before
    whole = tmp_path / "whole"
    finetune(*command, "--seeds", 1, "--out", whole)
    assert_same_bits(second, whole / "finetune-0.1-seed1")
    assert checkpoint(second)["global_step"] == 120


def test_a_resume_of_a_finished_run_just_scores_again(finished: Path) -> None:
    finetune("--run_dir", finished)
    scored = finished / "results" / "finetune-0.1-test-seed0.json"
    before, told = files(home(finished)), result(scored)
    scored.unlink()
    printed = finetune("--run_dir", finished, "--resume").out
    assert "nothing left to train" in printed
    assert "a larger --epochs goes on" in printed
    assert files(home(finished)) == before
    assert result(scored) == told
    finetune("--run_dir", finished, "--resume", "--split", "val")  # or another split
    assert (finished / "results" / "finetune-0.1-val-seed0.json").is_file()
    assert same_weights(checkpoint(home(finished)), torch_of(before["checkpoints/last.ckpt"]))


def torch_of(content: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def test_a_resume_begins_where_nothing_is_there_yet(finished: Path) -> None:
    finetune("--run_dir", finished, "--resume")
    out = finished / "other"
    finetune("--run_dir", finished, "--out", out)
    assert_same_bits(home(finished), out / "finetune-0.1-seed0")


def test_a_resume_with_more_epochs_goes_on_on_the_new_cosine(finished: Path) -> None:
    finetune("--run_dir", finished)
    printed = finetune("--run_dir", finished, "--resume", "--epochs", 8).out
    assert "The schedule's end moves from epoch 4 to 8" in printed
    table = rows(home(finished))
    assert [int(row["step"]) for row in table] == list(range(2 * STEPS + 1))
    peak = 0.05 * 43 / 256
    cosine = [peak * (1 + np.cos(np.pi * step / 24)) / 2 for step in range(12, 24)]
    assert [float(row["train/lr"]) for row in table[12:24]] == pytest.approx(cosine, rel=1e-5)
    assert "finetune/test_top1" not in table[STEPS]  # what the first end had scored is gone
    sentence = run("finetune", *FAST, "--run_dir", finished, "--resume", "--epochs", 6).sentence
    assert "can move the schedule's end out, not in" in sentence


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--learning_rate", "0.2"), "learning_rate was 0.05"),
        (("--weight_decay", "0.1"), "weight_decay was 0.0"),
        (("--batch_size", "60"), "batch_size was 50"),
        (("--trainer.precision", "64-true"), "trainer.precision was 32-true"),
        (("--trainer.gradient_clip_val", "1"), "trainer.gradient_clip_val was None"),
    ],
)
def test_a_resume_of_another_recipe_is_a_sentence(
    finished: Path, args: tuple[str, ...], words: str
) -> None:
    finetune("--run_dir", finished)
    before = files(finished)
    outcome = run("finetune", *FAST, "--run_dir", finished, "--resume", *args)
    assert outcome.code == 2
    assert words in outcome.sentence
    assert f"in {home(finished)} and is" in outcome.sentence
    assert "another --out" in outcome.sentence
    assert files(finished) == before


def test_a_resume_from_another_checkpoint_is_a_sentence_and_from_a_moved_one_is_none(
    finished: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    finetune("--run_dir", finished, *out)
    moved = tmp_path / "moved"
    finished.rename(moved)
    finetune("--run_dir", moved, *out, "--resume")
    fit(tmp_path / "other", "--seed_everything", 1)
    other = ("--run_dir", tmp_path / "other", "--seeds", 0, *out, "--resume")
    assert "checkpoint_sha256 was" in run("finetune", *FAST, *other).sentence


def test_a_resume_with_other_data_in_the_same_place_is_a_sentence(
    finished: Path, tmp_path: Path
) -> None:
    root = npz(tmp_path / "data.npz")
    data = ("--data.dataset", "npz", "--data.root", root, "--label_fraction", "0.5")
    finetune("--run_dir", finished, *data)
    for classes, images, words in ((4, 80, "labels was 56"), (7, 120, "classes was 4")):
        npz(root, classes=classes, images=images)
        sentence = run("finetune", *FAST, "--run_dir", finished, *data, "--resume").sentence
        assert words in sentence


def test_a_directory_that_holds_a_run_is_a_sentence_before_anything_is_trained(
    finished: Path,
) -> None:
    finetune("--run_dir", finished, "--seeds", 1)
    before = files(finished)
    outcome = run("finetune", *FAST, "--run_dir", finished, "--seeds", 0, 1)
    assert outcome.code == 2
    assert f"{home(finished, 'finetune-0.1-seed1')} already holds a run" in outcome.sentence
    assert "--resume" in outcome.sentence
    assert "--out" in outcome.sentence
    assert files(finished) == before


def test_a_broken_checkpoint_of_its_own_is_a_sentence(finished: Path) -> None:
    finetune("--run_dir", finished)
    weights(home(finished)).write_bytes(weights(home(finished)).read_bytes()[:5000])
    sentence = run("finetune", *FAST, "--run_dir", finished, "--resume").sentence
    assert "truncated" in sentence
    assert str(weights(home(finished))) in sentence


def test_ctrl_c_says_how_to_go_on(finished: Path) -> None:
    def press() -> None:
        while len(rows(home(finished))) < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    someone = threading.Thread(target=press)
    handler = signal.getsignal(signal.SIGINT)  # Lightning doesn't put it back
    someone.start()
    try:
        outcome = run("finetune", *FAST, "--run_dir", finished, "--epochs", 4000)
    finally:
        signal.signal(signal.SIGINT, handler)
        someone.join()
    assert outcome.code == 130
    assert outcome.sentence.startswith("error: interrupted at step ")
    assert outcome.sentence.endswith("the same command with --resume continues")
    assert not (finished / "results").exists()
