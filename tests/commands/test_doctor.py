"""`doctor`: a clean recipe, each warning, and exit code 1 with the sentence of `fit`."""

import contextlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from commands import ENCODER_ARGS, QUICK, REPOSITORY, Outcome, run
from noise import write_images

from simclr_pl.images.workers import room

pytestmark = pytest.mark.long

BASE = (*QUICK, "--trainer.limit_train_batches", "1.0")
SMALL = ("--data.num_workers", 1, "--data.batch_size", 64, "--data.image_size", 8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which is asked."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def doctor(*args: object) -> Outcome:
    return run("doctor", *BASE, *args)


def warned(*args: object) -> list[str]:
    """The warnings of a recipe that `fit` would train."""
    outcome = doctor(*args)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return [line for line in outcome.out.splitlines() if line.startswith("warning: ")]


def folder_of(root: Path, *more: object) -> tuple[object, ...]:
    return ("--data.dataset", "folder", "--data.root", root, *SMALL, *more)


def photographs(root: Path, count: int = 140) -> Path:
    """Two classes of noise in colours."""
    write_images(root / "a", count // 2, 9, 9)
    write_images(root / "b", count // 2, 10, 9)
    return root


def test_the_digits_recipe_is_clean_and_nothing_is_left_behind(here: Path) -> None:
    outcome = run(
        "doctor", "--config", REPOSITORY / "configs" / "digits.yaml", "--wandb", "offline",
        *("--model.encoder_args", ENCODER_ARGS),
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("nothing looks wrong\n")
    assert "note: W&B is offline" in outcome.out
    assert "256 images (256 a device), 510 negatives an anchor" in outcome.out
    assert "0.2 at its peak (sgd, linear scaling), 50 steps of warm-up" in outcome.out
    assert "500 (5 an epoch); 178 images sit out each epoch" in outcome.out
    assert "looked at: train 1,458 of 1,458" in outcome.out
    for row in ("a step", "time", "peak memory", "encoder"):
        assert f"\n  {row} " in outcome.out, row
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.stem", "imagenet"), ("ImageNet stem", "--model.stem auto")),
        (("--data.jitter", "1.0"), ("all images are gray, and jitter 1", "--data.jitter 0.4")),
        (("--data.grayscale", "0.2"), ("grayscale 0.2 does nothing", "--data.grayscale 0")),
        (("--model.temperature", "5"), ("temperature 5 is out", "--model.temperature")),
        (("--data.batch_size", "16"), ("batch of 16 images is out", "--data.batch_size")),
        (("--data.batch_size", "900"), ("an epoch has 1 batch", "--data.batch_size")),
        (("--data.labels", "none"), ("no image has a label", "--data.labels given")),
        (("--wandb", "online"), ("nobody is logged in", "--wandb offline")),
    ],
)
def test_each_doubt_is_one_line_with_the_option_to_change(
    options: tuple[str, ...], words: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    lines = warned("--data.jitter", "0.4", *options)
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_copies_across_splits_and_workers_beyond_the_cores_are_warned_of(tmp_path: Path) -> None:
    root = photographs(tmp_path / "set" / "train").parent
    write_images(root / "val" / "a", 3, 9, 9)
    args = folder_of(root, "--data.num_workers", len(os.sched_getaffinity(0)) + 1)
    lines = warned(*args)
    assert len(lines) == 2, lines
    assert "worker processes share" in lines[0]
    assert "3 images lie in several splits" in lines[1]


def test_copies_of_validation_images_that_were_held_out_of_train_are_found(tmp_path: Path) -> None:
    root = photographs(tmp_path / "set")
    for file in sorted((root / "b").iterdir()):
        shutil.copy(file, file.with_name(f"again{file.name}"))
    lines = warned(*folder_of(root))
    assert len(lines) == 1, lines
    assert "images lie in several splits" in lines[0]


def test_broken_images_are_named_at_once_and_the_sentence_is_that_of_fit(tmp_path: Path) -> None:
    root = photographs(tmp_path / "set", 130)
    for number in range(2):
        (root / "a" / f"broken{number}.png").write_bytes(b"no image")
    args = folder_of(root, "--data.num_workers", 0)
    outcome = doctor(*args)
    assert outcome.code == 1
    assert "2 images cannot be read" in outcome.out
    assert all(f"broken{number}.png" in outcome.out for number in range(2))
    assert "broken0.png cannot be decoded (no kind of image that PIL knows)" in outcome.sentence
    skipped = doctor(*args, "--data.on_bad_image", "skip")
    assert skipped.code == 1
    assert "2 of 132 images" in skipped.sentence


def test_a_broken_image_of_test_is_a_warning_since_fit_does_not_read_it(tmp_path: Path) -> None:
    for split, count in (("train", 130), ("test", 4)):
        photographs(tmp_path / "set" / split, count)
    (tmp_path / "set" / "test" / "a" / "broken.png").write_bytes(b"no image")
    outcome = doctor(*folder_of(tmp_path / "set", "--data.num_workers", 0))
    assert outcome.code == 0, outcome
    assert "warning: 1 images cannot be read" in outcome.out


@pytest.mark.parametrize("share", [0, 0.9, 1.9, 2.1])
def test_shared_memory_that_is_nearly_too_little_is_a_warning_and_less_the_refusal_of_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    args = folder_of(photographs(tmp_path / "set"))
    # One worker has two batches ready, and one is trained on; validation's are smaller.
    needed = 3 * 64 * 2 * 3 * 8 * 8
    usage = SimpleNamespace(total=9, free=int(share * needed))
    monkeypatch.setattr(room, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage)
    outcome = doctor(*args)
    if share < 1:
        assert outcome.code == 1
        assert "into shared memory" in outcome.sentence
        assert "--data.num_workers" in outcome.sentence
    else:
        assert outcome.code == 0, outcome
        said = "batches need 0.0703 MiB of shared memory, and " in outcome.out
        assert said == ("which is nearly too little: give a container" in outcome.out)
        assert said == (share < 2)


@pytest.mark.parametrize(
    "options",
    [
        ("--data.batch_size", "100000"),
        ("--data.dataset", "digts"),
        ("--model.encoder", "resnet18x"),
        ("--trainer.accumulate_grad_batches", "2"),
        ("--data.dataset", "folder", "--data.root", "nowhere"),
        ("--trainer.max_epochs", "0"),
    ],
)
def test_where_fit_fails_the_code_is_1_and_the_sentence_the_same(options: tuple[str, ...]) -> None:
    outcome, trained = doctor(*options), run("fit", *BASE, *options)
    assert (outcome.code, trained.code) == (1, 2)
    assert outcome.err == trained.err


def test_several_devices_are_told_of_and_not_started(tmp_path: Path) -> None:
    outcome = doctor("--trainer.devices", 2, "--data.jitter", "0.4")
    assert (outcome.code, outcome.err) == (0, "")
    assert "2 x cpu" in outcome.out
    assert "128 images (64 a device)" in outcome.out
    assert "not measured: bench measures" in outcome.out


def test_help_and_a_run_as_a_recipe(finished: Path) -> None:
    assert "--images" in run("doctor", "--help").out
    before = sorted(path.name for path in finished.rglob("*"))
    with contextlib.chdir(finished.parent):
        outcome = run("doctor", "--run_dir", finished)
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(path.name for path in finished.rglob("*")) == before
    assert yaml.safe_load((finished / "config.yaml").read_text())
