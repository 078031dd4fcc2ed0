"""What was derived is said before the first step: batch, negatives, rate, steps, stem, machine."""

import math
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, Outcome, fit, run
from noise import pixels, write_images


def shown(outcome: Outcome) -> dict[str, str]:
    """The table's rows by name; all of them come right before the first line of progress."""
    lines = outcome.out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("epoch "))
    rows = [line for line in lines if line.startswith("  ")]
    assert rows == lines[first - len(rows) : first]
    return {line[2:17].strip(): line[17:].strip() for line in rows}


def test_the_table_is_the_arithmetic_of_the_recipe(tmp_path: Path) -> None:
    table = shown(fit(tmp_path / "run"))
    assert table == {
        "run directory": str(tmp_path / "run"),
        "device": "1 x cpu, precision 32-true",
        "data": "digits: 1458 images (1312 labelled for the probe), 146 for validation, 10 "
        "classes, in memory (cpu)",
        "images": "1 x 8 x 8, mean [0.3052], std [0.3757]",
        "encoder": table["encoder"],
        "global batch": "128 images (128 a device), 254 negatives an anchor",
        "objective": "nt_xent",
        "batch norm": "global, over all devices",
        "learning rate": "0.025 at its peak (sgd, linear scaling), 0 steps of warm-up",
        "steps": "4 (2 an epoch); 50 images sit out each epoch, others each time",
        "seed": "0",
    }
    assert table["encoder"].startswith("resnet10t, stem 3x3 stride 1, no max-pool (timm), 0.0")


def test_the_table_follows_the_recipe(tmp_path: Path) -> None:
    other = (
        *("--data.batch_size", "64", "--model.optimizer", "adamw", "--model.lr_scaling", "sqrt"),
        *("--model.warmup_epochs", "1.5", "--trainer.precision", "bf16-mixed"),
        *("--model.stem", "imagenet", "--data.image_size", "32", "--seed_everything", "7"),
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4"),
    )
    table = shown(fit(tmp_path / "run", *other))
    assert table["device"] == "1 x cpu, precision bf16-mixed"
    assert table["images"].startswith("1 x 32 x 32")
    assert "stem as the library builds it (timm)" in table["encoder"]
    assert table["global batch"] == "64 images (64 a device), 126 negatives an anchor"
    rate = f"{0.05 * math.sqrt(64 / 256):.6g}"
    assert table["learning rate"] == (
        f"{rate} at its peak (adamw, sqrt scaling), 6 steps of warm-up"
        ": the run ends before the peak is reached"
    )
    assert table["steps"] == "4 (4 an epoch); 50 images sit out each epoch, others each time"
    assert table["seed"] == "7"


def test_micro_batches_and_what_they_mean_for_batch_norm(tmp_path: Path) -> None:
    parts = ("--model.micro_batch_size", "50", "--model.global_batch_norm", "false")
    table = shown(fit(tmp_path / "run", *parts))
    assert table["micro-batches"] == "3 of at most 43 images"
    assert table["batch norm"] == (
        "each device its own; the encoder's sees a micro-batch at a time, the projector's the "
        "whole batch"
    )


def test_views_of_ones_own_are_named(tmp_path: Path) -> None:
    own = ("--data.views", "examples.views.Dropped", "--data.views.share", "0.3")
    table = shown(fit(tmp_path / "run", *own, "--trainer.max_epochs", "1"))
    assert table["views"] == "examples.views.Dropped, 2 of each image"


def test_a_run_without_a_directory_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("fit", *QUICK, "--trainer.fast_dev_run", "true")
    assert shown(outcome)["run directory"] == "none (fast_dev_run)"


def test_image_files_say_who_decodes_them(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 24)
    data = ("--data.dataset", "folder", "--data.root", images)
    small = ("--data.batch_size", "8", "--data.num_workers", "0")
    table = shown(fit(tmp_path / "run", *data, *small))
    assert table["data"].startswith("folder: 24 images (0 labelled for the probe), 2 for val")
    assert "0 classes" in table["data"]


def test_a_channel_without_contrast_is_named(tmp_path: Path) -> None:
    images = pixels(40, 8, 8, 3)
    images[..., 1] = 7
    np.savez(tmp_path / "data.npz", train_images=images)
    data = ("--data.dataset", "npz", "--data.root", tmp_path / "data.npz")
    table = shown(fit(tmp_path / "run", *data, "--data.batch_size", "8"))
    assert table["images"].endswith("; EMPTY (no contrast): channel 2 of 3")
