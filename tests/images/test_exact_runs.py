"""Real runs on sources that no other test kills: killed and resumed to the same bits."""

import json
from pathlib import Path

import pytest
from commands import QUICK, fit
from each_source import CUT, WHOLE
from run_files import checkpoint
from stopping import begin, check_same_run, kill_when, paused

from simclr_pl.images.readers import items, stored

KINDS = (
    *("npy on disk", "hdf5 on disk", "zarr on disk", "torchvision, many sizes"),
    *("packed, with groups", "npz of 16 bits"),
)


@pytest.mark.processes
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_in_mid_epoch_ends_as_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = (WHOLE | CUT)[kind](tmp_path, monkeypatch)
    recipe = [
        *("--data.dataset", made.given, "--data.root", made.root, "--data.batch_size", "6"),
        *("--data.num_workers", "1", "--trainer.limit_train_batches", "3"),
        *("--checkpoint.every_n_steps", "2", "--resume"),
    ]
    if made.range is not None:
        recipe += ["--data.range", json.dumps(made.range)]
    if made.workers:
        for module in (items, stored):
            monkeypatch.setattr(module, "MEMORY_BYTES", 0)  # put back, whatever the callback does
        recipe += ["--trainer.callbacks+=on_disk.OnDisk"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(whole, *recipe)
    kill_when(begin(killed, *QUICK, *recipe, moment="step 6"), paused(killed))
    assert checkpoint(killed)["global_step"] == 4  # of 3 an epoch
    assert fit(killed, *recipe).err == ""
    check_same_run(killed, whole)
