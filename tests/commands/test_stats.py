"""`stats`: what it finds in images of each kind, says, and writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from commands import Outcome, run
from hub_files import labelled
from noise import pixels, write_image, write_images, write_npz
from PIL import Image

from simclr_pl import ContrastiveDataModule


def looked(*args: object, out: Path) -> tuple[dict[str, Any], Outcome]:
    outcome = run("stats", *args, "--out", out, "--data.num_workers", 0)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return json.loads(out.read_text()), outcome


def recipe_of(outcome: Outcome) -> dict[str, Any]:
    """The lines for a recipe, as YAML."""
    text = outcome.out.split("for a recipe:\n")[1].split("written to")[0]
    data: dict[str, Any] = yaml.safe_load(text)["data"]
    return data


def test_the_numbers_are_those_that_fit_counts_and_the_lines_are_a_recipe(tmp_path: Path) -> None:
    found, outcome = looked("--data.dataset", "digits", "--images", "all", out=tmp_path / "s.json")
    recipe = recipe_of(outcome)
    assert recipe == found["recipe"]["data"]
    data = ContrastiveDataModule(**recipe)
    plain = ContrastiveDataModule("digits")
    for each in (data, plain):
        each.setup()
    assert (data.mean, data.std, data.image_size) == (plain.mean, plain.std, plain.image_size)
    assert found["kinds"] == {"gray, 8 bits": 1797}
    assert found["looked_at"] == found["images"] == {"train": 1458, "test": 339}
    assert found["sizes"] == {"min": [8, 8], "median": [8, 8], "max": [8, 8]}
    assert found["bands"][0]["percentiles"]["50.0"] == 16
    assert "no image has the pixels of another" in outcome.out


def test_a_folder_has_sizes_modes_bad_images_and_copies_within_and_across_splits(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    write_images(root / "train" / "a", 6, 20, 30)
    write_image(root / "train" / "a" / "large.png", 77, 90, 64)
    write_images(root / "val" / "a", 1, 20, 30)  # the pixels of train's first
    shutil.copy(root / "train" / "a" / "001.png", root / "train" / "a" / "again.png")
    (root / "train" / "a" / "broken.png").write_bytes(b"no image")
    config = tmp_path / "mine.yaml"
    config.write_text(f"data: {{dataset: folder, root: {root}, batch_size: 4, jitter: 0.1}}\n")
    found, outcome = looked("--config", config, out=tmp_path / "s.json")
    assert found["kinds"] == {"RGB, 8 bits": 9}
    assert found["sizes"] == {"min": [20, 30], "median": [20, 30], "max": [90, 64]}
    assert [Path(bad["image"]).name for bad in found["bad"]] == ["broken.png"]
    assert "1 images cannot be read:" in outcome.out
    assert "broken.png: no kind of image that PIL knows" in outcome.out
    assert "2 images are copies of others; 1 of 2 sets of copies lie across splits" in outcome.out
    across, within = sorted(found["copies"], key=lambda group: group[0][1])
    assert {split for split, _ in across} == {"train", "val"}
    assert {Path(name).name for _, name in within} == {"001.png", "again.png"}
    assert recipe_of(outcome)["image_size"] == 20


def test_a_sample_says_that_it_is_one(tmp_path: Path) -> None:
    found, outcome = looked("--data.dataset", "digits", "--images", 90, out=tmp_path / "s.json")
    assert sum(found["looked_at"].values()) == 90
    assert "train 73 of 1,458" in outcome.out
    assert "among those looked at (--images all: in all)" in outcome.out


@pytest.mark.parametrize("given", [(), ("--data.range", "[0,4095]"), ("--data.range", "auto")])
def test_numbers_need_no_range_and_are_told_by_band(tmp_path: Path, given: tuple[str, ...]) -> None:
    numbers = np.random.default_rng(0).integers(0, 4096, (5, 12, 14, 5)).astype(np.uint16)
    numbers[..., 4] = 7
    for number, image in enumerate(numbers):
        path = tmp_path / "set" / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, image, planarconfig="contig", photometric="minisblack")
    where = ("--data.dataset", "folder", "--data.root", tmp_path / "set")
    found, outcome = looked(*where, *given, out=tmp_path / "s.json")
    assert found["kinds"] == {"5 channels, 16 bits": 5}
    assert [band["mean"] for band in found["bands"]] == pytest.approx(
        [numbers[..., c].mean() for c in range(5)]
    )
    assert found["bands"][1]["std"] == pytest.approx(numbers[..., 1].std())
    assert "EMPTY" in outcome.out
    recipe = recipe_of(outcome)
    assert "mean" not in recipe  # a band without contrast has no std to divide by
    low, high = recipe["range"]
    assert (low, high) == (0, 4095) if "auto" not in given and given else 4000 < high <= 4095


def test_arrays_of_16_bits_have_the_statistics_of_their_range(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(100, 900, (30, 8, 8)).astype(np.uint16)
    np.savez(tmp_path / "a.npz", train_images=images)
    where = ("--data.dataset", "npz", "--data.root", tmp_path / "a.npz")
    found, outcome = looked(*where, "--data.range", "[0,1000]", out=tmp_path / "s.json")
    recipe = recipe_of(outcome)
    assert recipe["range"] == [0, 1000]
    assert recipe["mean"] == [pytest.approx(images.mean() / 1000, abs=1e-4)]
    assert found["kinds"] == {"gray, 16 bits": 30}


def test_packed_images_and_those_of_a_dataset_are_looked_at(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 6, 20, 30)
    assert run("pack", folder, tmp_path / "packed", "--num_workers", 0).code == 0
    packed, _ = looked(
        *("--data.dataset", "packed", "--data.root", tmp_path / "packed"), out=tmp_path / "p.json"
    )
    files, _ = looked(*("--data.dataset", "folder", "--data.root", folder), out=tmp_path / "f.json")
    for key in ("bands", "sizes", "kinds"):
        assert packed[key] == files[key]
    labelled(6, 20, 30, 3).save_to_disk(tmp_path / "hub")
    hub, _ = looked("--data.dataset", f"hub:{tmp_path / 'hub'}", out=tmp_path / "h.json")
    assert (hub["sizes"], hub["kinds"]) == (files["sizes"], files["kinds"])
    items, _ = looked(
        *("--data.dataset", f"{__name__}.Items", "--images", "all"), out=tmp_path / "i.json"
    )
    assert items["sizes"]["max"] == [11, 9]
    assert len(items["copies"]) == 1


class Items:
    """Six items of two sizes, two of them alike."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, place: int) -> Any:
        import torch

        side = 9 if place < 5 else 11
        return torch.from_numpy(pixels(3, side, 9, seed=max(place, 1)))


def test_items_of_16_bits_need_no_range(tmp_path: Path) -> None:
    found, outcome = looked("--data.dataset", f"{__name__}.Deep", out=tmp_path / "s.json")
    assert found["kinds"] == {"2 channels, 16 bits": 4}
    assert recipe_of(outcome)["range"][1] > 255


class Deep:
    """Four items of 16 bits."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> Any:
        import torch

        if place >= 4:
            raise IndexError
        return torch.from_numpy(pixels(2, 9, 9, seed=place).astype(np.uint16) * 16)


@pytest.mark.processes
def test_worker_processes_find_the_same(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 40, 20, 30)
    found = []
    for workers in (0, 1):
        out = tmp_path / f"{workers}.json"
        data = ("--data.dataset", "folder", "--data.root", folder, "--data.num_workers", workers)
        assert run("stats", *data, "--out", out).code == 0
        found.append(out.read_text())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "stats needs --config FILE, --run_dir RUN, or --data.dataset NAME"),
        (("--run_dir", "nowhere"), "nowhere holds no run"),
        (("--config", "a.yaml", "--run_dir", "b"), "one of --config FILE and --run_dir RUN"),
        (("--data.dataset", "digts"), "did you mean digits"),
        (("--data.dataset", "digits", "--images", "0"), "images is 0, but must be at least 1"),
        (("--data.dataset", "folder", "--data.root", "nowhere"), "there is no folder nowhere"),
    ],
)
def test_wrong_options_are_a_sentence(args: tuple[str, ...], sentence: str) -> None:
    assert sentence in run("stats", *args).sentence


def test_a_range_that_clips_is_said() -> None:
    outcome = run("stats", "--data.dataset", "digits", "--data.range", "[0,16]")
    assert outcome.code == 0
    assert "the range [0,16] clips" in outcome.out


@pytest.mark.processes
def test_files_of_8_bit_numbers_alone_are_looked_at(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", pixels(9, 7, 3, seed=number))
    outcome = run("stats", "--data.dataset", "folder", "--data.root", tmp_path)
    assert outcome.code == 0, outcome
    assert "every image that was looked at can be read" in outcome.out
    assert "range: [0, 255]" in outcome.out


@pytest.mark.processes
def test_files_that_a_training_leaves_out_change_no_recipe(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(pixels(9, 7, 3, seed=number)).save(tmp_path / f"{number}.png")
        np.save(tmp_path / f"{number}.npy", np.full((5, 5), 0.5, np.float32))
    outcome = run("stats", "--data.dataset", "folder", "--data.root", tmp_path)
    assert "looked at: train 4 of 4" in outcome.out
    assert "range" not in outcome.out.partition("for a recipe")[2]


@pytest.mark.processes
def test_a_set_without_a_readable_image_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"")
    outcome = run("stats", "--data.dataset", "folder", "--data.root", tmp_path / "set")
    assert "can be read" in outcome.sentence


def test_a_run_and_its_npz_are_found(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", 9, 9, 3, val=8)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(
        f"data: {{dataset: npz, root: {tmp_path / 'a.npz'}}}\n"
    )
    found, _ = looked("--run_dir", tmp_path / "run", out=tmp_path / "s.json")
    assert found["images"] == {"train": 40, "val": 8}
