"""Bad files from the command line: listed at once, or stepped over and named by the run."""

import csv
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, finish, run, start
from distances import far
from photographs import fill, photograph
from run_files import checkpoint, rows

from simclr_pl.images.readers.packed import INDEX

pytestmark = pytest.mark.long

DATA = ("--data.dataset", "folder", "--data.num_workers", "0", "--data.batch_size", "16")
SKIP = ("--data.on_bad_image", "skip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """326 images, three of them bad: one to train on, and a whole batch of two to validate on."""
    root = tmp_path_factory.mktemp("set")
    for first, name in enumerate(("cat", "dog")):
        for number, (split, count) in enumerate((("train", 150), ("val", 3), ("test", 10))):
            fill(root / split / name, count, 500 * first + 200 * number, ".png")
    for bad in ("train/dog/510.png", "val/cat/200.png", "val/cat/201.png"):
        (root / bad).write_bytes(b"bad")
    return root


@pytest.fixture(scope="module")
def skipped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose validation has a batch of no rows at all."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    small = (*DATA, *SKIP, "--data.batch_size", "2", "--trainer.limit_train_batches", "1.0")
    every = ("--trainer.max_epochs", "1", "--knn.every_n_epochs", "1")
    done = run("fit", *QUICK, *small, *every, "--data.root", folder, "--run_dir", directory)
    assert done.code == 0, done
    assert "2 of 6 images cannot be read: they are left out here" in done.out
    return directory


def left_out(directory: Path) -> list[str]:
    with (directory / "left_out.csv").open(newline="") as file:
        return sorted(f"{Path(row['path']).name} {row['reason']}" for row in csv.DictReader(file))


WHY = "no kind of image that PIL knows"


@pytest.mark.long
def test_a_run_goes_on_without_bad_files_and_names_them(skipped: Path) -> None:
    assert left_out(skipped) == [f"{name} {WHY}" for name in ("200.png", "201.png", "510.png")]
    assert float(rows(skipped)[-1]["val/loss"]) > 0
    assert checkpoint(skipped)["global_step"] == 150


@pytest.mark.parametrize(
    "command",
    [
        ("validate",),
        ("predict",),
        ("knn", "--split", "val"),
        ("linear", "--split", "val", "--epochs", "1"),
    ],
    ids=lambda command: command[0],
)
def test_evaluations_count_what_can_be_read(skipped: Path, command: tuple[str, ...]) -> None:
    done = run(*command, "--run_dir", skipped, *(("--wandb", "off") if len(command) > 1 else ()))
    assert done.code == 0, done
    assert "2 of 6 images cannot be read: they are left out here" in done.out
    assert len(left_out(skipped)) == 3
    if command == ("predict",):
        with np.load(skipped / "features-val.npz") as file:
            assert file["index"].tolist() == [2, 3, 4, 5]
            assert len(file["features"]) == len(file["labels"]) == 4


@pytest.mark.ddp
@pytest.mark.timeout(300)
def test_devices_leave_the_same_images_out_and_end_in_the_same_weights(
    folder: Path, tmp_path: Path
) -> None:
    """18 batches an epoch, two epochs: one of the ranks meets the bad image, in each."""
    options = (*DATA, *SKIP, "--data.root", folder, "--trainer.limit_train_batches", "1.0")
    options = (*QUICK, *options, "--trainer.precision", "64-true")
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("fit", *options, "--run_dir", one).code == 0
    done = finish(start("fit", *options, "--run_dir", two, "--trainer.devices", "2"), 200)
    assert done.code == 0, done
    for part in ("state_dict", "optimizer_states"):
        assert far(checkpoint(one)[part], checkpoint(two)[part]) < 1e-9
    assert checkpoint(one)["global_step"] == checkpoint(two)["global_step"] == 36
    named = [f"{name} {WHY}" for name in ("200.png", "201.png", "510.png")]
    assert left_out(one) == left_out(two) == named


def test_without_being_asked_a_bad_file_ends_the_run(folder: Path, tmp_path: Path) -> None:
    every = ("--data.root", folder, "--run_dir", tmp_path / "run")
    done = run("fit", *QUICK, *DATA, *every, "--trainer.limit_train_batches", "1.0")
    assert "cannot be decoded" in done.sentence
    assert not (tmp_path / "run" / "left_out.csv").exists()


def test_more_than_one_in_a_hundred_is_too_many(tmp_path: Path) -> None:
    fill(tmp_path / "set" / "a", 40, suffix=".png")
    (tmp_path / "set" / "a" / "003.png").write_bytes(b"")
    data = (*DATA, *SKIP, "--data.root", tmp_path / "set", "--run_dir", tmp_path / "run")
    done = run("fit", *QUICK, *data, "--trainer.limit_train_batches", "1.0")
    assert "1 of 40 images of" in done.sentence
    assert "pack" in done.sentence


@pytest.mark.parametrize("workers", [0, 1])
def test_check_lists_all_bad_files_with_their_reasons(tmp_path: Path, workers: int) -> None:
    root = tmp_path / "set"
    fill(root / "a", 20, suffix=".png")
    (root / "a" / "003.png").write_bytes(b"")
    cut = root / "a" / "007.png"
    cut.write_bytes(cut.read_bytes()[:300])
    photograph(3, 40).save(root / "a" / "narrow.png")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (root / "a" / "photo.heic").write_bytes(heic)
    (root / "a" / "really.jpg").write_bytes(heic)
    asked = ("pack", root, "--check", "--num_workers", workers)
    done = finish(start(*asked)) if workers else run(*asked)
    assert done.sentence == (
        f"error: 5 of 23 images of {root} cannot be read: remove what is listed, or save it again"
    )
    _, *listed = done.out.splitlines()
    assert [line.split(": ")[0] for line in listed] == [
        str(root / "a" / name)
        for name in ("003.png", "007.png", "narrow.png", "photo.heic", "really.jpg")
    ]
    assert listed[0].endswith(": it is empty")
    assert "3 x 40 pixels, too small" in listed[2]
    assert all("HEIC: pip install pillow-heif, which reads it" in line for line in listed[3:])
    for path in (root / "a").iterdir():
        if str(path) in done.out:
            path.unlink()
    whole = run("pack", root, "--check", "--num_workers", "0")
    assert whole.code == 0
    assert whole.out.splitlines()[-1] == f"all 18 images of {root} can be read"


def test_pack_takes_images_of_as_many_pixels_as_it_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "set", 3, suffix=".png")
    asked = ("pack", tmp_path / "set", tmp_path / "out", "--num_workers", "0", "--max_pixels")
    assert "more than max_pixels (100) allows" in run(*asked, "100").sentence
    assert run(*asked, "10000").code == 0


def test_a_packed_index_whose_sizes_overflow_is_broken(tmp_path: Path) -> None:
    fill(tmp_path / "set", 3, suffix=".png")
    assert run("pack", tmp_path / "set", tmp_path / "out", "--num_workers", "0").code == 0
    with np.load(tmp_path / "out" / INDEX) as file:
        arrays = dict(file)
    arrays["sizes"] = np.full_like(arrays["sizes"], 2**31 - 1)
    np.savez(tmp_path / "out" / INDEX, **arrays)
    data = ("--data.dataset", "packed", "--data.root", tmp_path / "out")
    done = run("fit", *QUICK, *data, "--run_dir", tmp_path / "run")
    assert "speaks of 4.15e+19 bytes of pixels, so it is broken" in done.sentence
