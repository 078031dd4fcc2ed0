"""Runs on shards, near and far: killed, resumed, and the same as on other sets."""

from pathlib import Path

import pytest
from commands import QUICK, fit
from hub_files import png
from noise import pixels, write_npz
from run_files import checkpoint, rows
from shard_files import odd_images, serving, write_shards
from stopping import begin, check_same_run, differences, kill_when


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_same_pixels_as_npz_and_as_shards_give_the_same_curve(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "set.npz", 8, 8, train=160)
    root = write_shards(tmp_path / "set", [png(image) for image in pixels(160, 8, 8)], 50)
    short = ("--data.batch_size", "64")
    fit(tmp_path / "one", *short, "--data.dataset", "npz", "--data.root", file)
    fit(tmp_path / "two", *short, "--data.dataset", "shards", "--data.root", root)
    fit(tmp_path / "two", *short, "--data.dataset", "shards", "--data.root", root, "--resume")
    one, two = (checkpoint(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert rows(tmp_path / "one")[:2] == rows(tmp_path / "two")[:2]
    assert differences(one, two) == []


def test_a_run_on_a_server_that_fails_is_killed_and_ends_as_one_on_a_disk(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "set", odd_images(80), 20)
    recipe = (
        *("--data.dataset", "shards", "--data.batch_size", "16", "--data.num_workers", "1"),
        *("--trainer.limit_train_batches", "4", "--trainer.max_epochs", "4"),
        *("--checkpoint.every_n_steps", "3"),
    )
    fit(tmp_path / "whole", *recipe, "--data.root", root)
    with serving(root, fail=61) as server:
        far = (*recipe, "--data.root", server.address, "--data.dataset.cache_gb", "0.00002")
        run = tmp_path / "run"
        process = begin(run, *QUICK, *far, "--resume")
        kill_when(process, lambda: len(rows(run)) >= 6)
        assert 3 <= checkpoint(run)["global_step"] < 16
        assert fit(run, *far, "--resume").err == ""
        assert len(server.asked) > 160
    check_same_run(run, tmp_path / "whole")
