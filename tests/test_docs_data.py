"""docs/data.md as it is printed: its commands run on small data of each kind, its options parse."""

import re
import shlex
from pathlib import Path

import datasets
import h5py
import numpy as np
import pytest
import tifffile
import yaml
import zarr
from commands import ENCODER_ARGS, REPOSITORY
from hub_files import labelled, saved
from manifests import write_manifest
from photographs import fill
from shard_files import odd_images, write_shards

from simclr_pl.__main__ import main

PAGE = (REPOSITORY / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line.removeprefix("python -m simclr_pl ")
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
]
PHOTOGRAPHS = REPOSITORY / "configs" / "photographs.yaml"
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`--data." in line]

SHORT = (
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--wandb", "off"),
    *("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"),
    *("--trainer.check_val_every_n_epoch", "1", "--linear.every_n_epochs", "0"),
    *("--data.batch_size", "8", "--data.image_size", "16", "--data.num_workers", "0"),
    *("--model.encoder", "resnet10t", "--model.encoder_args", ENCODER_ARGS),
    *("--model.compiled", "false", "--data.compiled", "false", "--trainer.log_every_n_steps", "1"),
)
"""A step, whatever the recipe is."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data that the page names, in which commands run."""
    random = np.random.default_rng(0)
    mine = tmp_path / "my"
    for name in ("cats", "dogs"):
        fill(mine / "images" / name, 8)
    files = sorted(path.relative_to(tmp_path) for path in (mine / "images").rglob("*.jp*g"))
    assert len(files) >= 16
    rows = [[path, path.parent.name, f"place {number // 2}"] for number, path in enumerate(files)]
    write_manifest(tmp_path / "images.csv", rows, "path,label,group")
    scans = []
    for number in range(24):
        tile = random.integers(0, 10_000, (20, 20, 13)).astype(np.uint16)
        (mine / "tiles" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        path = mine / "tiles" / "ab"[number % 2] / f"{number}.tif"
        tifffile.imwrite(path, tile, photometric="minisblack", planarconfig="contig")
        (tmp_path / "scans").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "scans" / f"{number}.tif", tile[..., 0] % 4096)
        scans.append([f"scans/{number}.tif", "ab"[number % 2], f"patient {number // 3}"])
    write_manifest(tmp_path / "scans.csv", scans, "path,label,group")
    arrays = {
        "train_images": random.integers(0, 65_536, (24, 20, 20, 4)).astype(np.uint16),
        "train_labels": np.arange(24) % 3,
    }
    eight = (arrays["train_images"] // 256).astype(np.uint8)
    np.savez(mine / "arrays.npz", train_images=eight, train_labels=arrays["train_labels"])
    (mine / "arrays").mkdir()
    group = zarr.open_group(mine / "arrays.zarr", mode="w")
    with h5py.File(mine / "arrays.h5", "w") as file:
        for name, array in arrays.items():
            np.save(mine / "arrays" / f"{name}.npy", array)
            file[name] = array
            group.create_array(name, data=array)
    write_shards(mine / "shards", odd_images(40))
    saved(mine / "saved", datasets.DatasetDict({"train": labelled(40, 20, 20, 3)}))
    recipe = yaml.safe_load(PHOTOGRAPHS.read_text())
    recipe["data"]["range"] = "auto"
    (tmp_path / "arrays.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.long
def test_its_commands_run_in_their_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) > 10
    for number, command in enumerate(COMMANDS):
        args = shlex.split(command)
        short = SHORT if args[0] in ("fit", "doctor") else ()
        if args[0] == "fit":
            short = (*short, "--run_dir", str(here / f"run{number}"))
        assert main([*args, *short]) == 0, (command, capsys.readouterr().err)


@pytest.mark.parametrize("row", ROWS)
def test_its_options_are_accepted(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each passes the parser and shows up in the configuration that it prints."""
    for options in re.findall(r"`(--data\.[^`]+)`", row):
        if "mine.Cells" in options:  # a class of the reader's
            continue
        words = shlex.split(options)
        if words[0].startswith("--data.views."):
            words = ["--data.views", "extended", *words]
        with pytest.raises(SystemExit) as done:
            main(["fit", f"--config={PHOTOGRAPHS}", *words, "--print_config"])
        out, err = capsys.readouterr()
        assert not done.value.code, (options, err)
        printed = yaml.safe_load(out)["data"]
        key = words[-2].split(".")[-1]
        place = printed[words[-2].split(".")[1]] if words[-2].count(".") > 1 else printed
        place = place["init_args"] if isinstance(place, dict) and "init_args" in place else place
        assert place[key] == yaml.safe_load(words[-1]), out
