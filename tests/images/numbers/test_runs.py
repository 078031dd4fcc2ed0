"""Runs on numbers: killed and resumed to the same bits, and evaluated in the range of the run."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from commands import QUICK, run, start
from run_files import checkpoint, rows
from stopping import check_same_run, kill_when

from simclr_pl import load_encoder

AUTO = ("--data.dataset", "folder", "--data.range", "auto", "--data.image_size", "16")
FLAT = ("--data.jitter", "0", "--data.grayscale", "0", "--data.batch_size", "24")
LONGER = ("--trainer.limit_train_batches", "3", "--trainer.max_epochs", "4")
KEPT = ("mean", "std", "range")
OFTEN = ("--checkpoint.every_n_steps", "2", "--resume", "--trainer.log_every_n_steps", "1")


def write(path: Path, seed: int) -> None:
    array = np.random.default_rng(seed).gamma(2, 300, (5, 20, 24)).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed in range(90):
        write(tmp_path / "images" / "ab"[seed % 2] / f"{seed}.tif", seed)
    return tmp_path / "images"


@pytest.mark.timeout(400)
def test_killed_and_resumed_it_ends_in_the_same_bits(images: Path, tmp_path: Path) -> None:
    one, whole = tmp_path / "one", tmp_path / "whole"
    recipe = (*QUICK, *AUTO, *FLAT, *LONGER, *OFTEN, "--data.root", images)
    kill_when(start("fit", *recipe, "--run_dir", one), lambda: len(rows(one)) in (6, 7, 8))
    for directory in (one, whole):
        done = run("fit", *recipe, "--run_dir", directory)
        assert (done.code, done.err) == (0, ""), done
    check_same_run(one, whole)
    about = {name: checkpoint(whole)["simclr_pl"][name] for name in KEPT}
    kept = about["range"]
    assert f"range [{kept[0]:g},{kept[1]:g}], percentiles 0.1 and 99.9 of 64 images" in done.out
    assert load_encoder(whole / "checkpoints" / "last.ckpt").range == kept
    # A bright image more, and percentiles would be other ones: the run's range stays.
    bright = images / "a" / "0.tif"
    tifffile.imwrite(
        bright, np.full((5, 20, 24), 60000, np.uint16), photometric="minisblack",
        planarconfig="separate",
    )  # fmt: skip
    done = run("linear", "--run_dir", whole, "--split", "val", "--epochs", 1)
    assert (done.code, done.err) == (0, "")
    assert f"the range [{kept[0]:g},{kept[1]:g}] clips" in done.out
    done = run("report", "--run_dir", whole)
    assert (done.code, done.err) == (0, ""), done
    assert "percentiles" not in done.out  # no other range was found
    longer = ("--trainer.max_epochs", "5")
    done = run("fit", *recipe, *longer, "--run_dir", whole)
    assert (done.code, done.err) == (0, ""), done
    assert {name: checkpoint(whole)["simclr_pl"][name] for name in KEPT} == about
