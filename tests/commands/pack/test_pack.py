"""pack as a command, and what packed images are good for: training, resumes, evaluations."""

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import QUICK, finish, fit, run, signal_when, start
from filling import no_file_above
from photographs import fill, photograph
from PIL import Image
from run_files import cells, checkpoint, rows, same_weights
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import UserError, locks
from simclr_pl.commands.pack.pack import pack
from simclr_pl.images.datasets import load
from simclr_pl.images.readers.packed import INDEX, PIXELS
from simclr_pl.images.readers.packed_images import PackedImages

forks = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process:DeprecationWarning"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes and three splits, JPEGs and PNGs."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 20), ("val", 4), ("test", 5)):
        for number, name in enumerate(("cat", "dog")):
            fill(root / split / name, count, 50 * number, ".jpg" if number else ".png")
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed as a user does it, with worker processes."""
    out = tmp_path_factory.mktemp("packed") / "set"
    done = finish(start("pack", folder, out))
    assert done.code == 0, done
    return out


def images_of(source: object) -> list[Tensor]:
    """A packed split's images, one by one."""
    assert isinstance(source, PackedImages)
    batches = source.batches(list(torch.arange(len(source)).split(1)), 0, "clean")
    return [batch.images[0] for batch in batches]


def decoded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is written ----------------------------------------------------------------------------------


def test_small_images_are_packed_as_they_are(folder: Path, packed: Path) -> None:
    splits = load("packed", packed)
    for name in ("train", "val", "test"):
        paths = [p for c in ("cat", "dog") for p in sorted((folder / name / c).iterdir())]
        found = images_of(getattr(splits, name))
        for path, image in zip(paths, found, strict=True):
            assert torch.equal(image, TF.pil_to_tensor(decoded(path)))
    assert left(packed) == [INDEX, PIXELS]
    assert left(packed.parent) == ["set"]


def test_a_packed_set_names_its_images_as_the_folder_does(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "images")
    cats = tmp_path / "images" / "train" / "cat"
    (cats / "000.png").rename(cats / os.fsdecode(b"\xe4\n.png"))  # Latin-1, and a line break
    pack(str(tmp_path / "images"), str(tmp_path / "set"), num_workers=0)
    files, pixels = load("folder", tmp_path / "images"), load("packed", tmp_path / "set")
    for one, other in zip(files[:3], pixels[:3], strict=True):
        assert one
        assert other
        assert list(one.names or ()) == list(other.names or ()) != []
    assert b"cat/\xe4\n.png" in (pixels.train.names or ())
    some = pixels.train.select(torch.tensor([39, 0]))
    assert list(some.names or ()) == [b"dog/069.jpg", (pixels.train.names or ())[0]]


def test_a_set_that_was_packed_without_names_is_read(packed: Path, tmp_path: Path) -> None:
    older = shutil.copytree(packed, tmp_path / "set")
    with np.load(packed / INDEX) as index:
        np.savez_compressed(older / INDEX, **{k: index[k] for k in index.files if k != "names"})
    splits = load("packed", older)
    assert (splits.train.names, len(splits.train)) == (None, 40)
    assert splits.train.select(torch.tensor([3])).names is None


def test_the_sentence_tells_number_size_and_how_to_train(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    done = run("pack", folder, out, "--num_workers", "0")
    size = (out / PIXELS).stat().st_size
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        f"{folder}: 58 images (train 40, val 8, test 10); nothing is left out\n"
        f"58 images packed into {out} ({size / 1e9:.3g} GB): train on them with "
        f"--data.dataset packed --data.root {out}\n"
    )


@forks
def test_workers_change_not_a_byte(folder: Path, packed: Path, tmp_path: Path) -> None:
    for workers in ("0", "1"):
        out = tmp_path / workers
        assert run("pack", folder, out, "--num_workers", workers).code == 0
        assert (out / PIXELS).read_bytes() == (packed / PIXELS).read_bytes()
        with np.load(out / INDEX) as one, np.load(packed / INDEX) as other:
            assert all(np.array_equal(one[name], other[name]) for name in other.files)


SHAPES = {  # width and height before, and with a short side of 32 behind
    "wide": ((80, 60), (43, 32)),
    "upright": ((60, 80), (32, 43)),
    "square": ((50, 50), (32, 32)),
    "of that size": ((50, 32), (50, 32)),
    "smaller": ((20, 30), (20, 30)),
    "twice as wide": ((100, 50), (64, 32)),
    "panorama": ((301, 50), (64, 32)),
    "tower": ((40, 200), (32, 64)),
    "small panorama": ((200, 20), (40, 20)),
}


@pytest.mark.parametrize(("before", "after"), SHAPES.values(), ids=SHAPES.keys())
def test_the_shorter_side_is_what_was_asked_for(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    path = tmp_path / "images" / "image.png"
    path.parent.mkdir()
    image = photograph(*before)
    image.save(path)
    pack(str(path.parent), str(tmp_path / "set"), short_side=32, num_workers=0)
    (found,) = images_of(load("packed", tmp_path / "set").train)
    assert (found.shape[2], found.shape[1]) == after
    width, height = (min(side, 2 * min(before)) for side in before)
    middle = (before[1] - height) // 2, (before[0] - width) // 2, height, width
    want = TF.resized_crop(image, *middle, [after[1], after[0]], antialias=True)
    assert torch.equal(found, TF.pil_to_tensor(want))


def test_files_of_any_mode_are_packed_as_rgb(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for mode in ("L", "P", "RGBA", "1"):
        photograph(30, 20).convert(mode).save(root / f"{mode}.png")
    photograph(30, 20).convert("CMYK").save(root / "CMYK.jpg")
    assert run("pack", root, tmp_path / "set", "--num_workers", "0").code == 0
    splits = load("packed", tmp_path / "set")
    assert (len(splits.train), splits.classes, splits.test) == (5, (), None)
    for path, image in zip(sorted(root.iterdir()), images_of(splits.train), strict=True):
        assert torch.equal(image, TF.pil_to_tensor(decoded(path)))


# What is refused ----------------------------------------------------------------------------------


def test_help_tells_units() -> None:
    out = run("pack", "--help").out
    assert "folder out" in out
    assert "in pixels" in out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "folder (see --help) is required"),
        (("images",), "out (see --help) is required"),
        (("images", "set", "more"), "unrecognized arguments: more"),
        (("images", "set", "--short_sides", "3"), "did you mean 'short_side'?"),
        (("images", "set", "--short_side", "3"), "short_side is 3, but must be at least 4 pixels"),
        (("images", "set", "--num_workers", "-1"), "num_workers is -1, but must be 0 or more"),
        (("gone", "set"), "there is no folder gone: give the images' folder first"),
        (("empty", "set"), "empty holds no images"),
        (("images", "empty"), "empty exists: give another directory, or remove it first"),
        (("images", "images"), "images exists"),
        (("images", "gone/set"), "there is no folder gone to write set into"),
    ],
)
def test_a_command_that_cannot_work_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "images", 3)
    (tmp_path / "empty").mkdir()
    done = run("pack", *args)
    assert done.code == 2
    assert sentence in done.sentence
    assert left(tmp_path) == ["empty", "images"]
    assert left(tmp_path / "empty") == []


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named_and_nothing_stays(
    tmp_path: Path, workers: int
) -> None:
    paths = fill(tmp_path / "images", 40)
    paths[33].write_bytes(paths[33].read_bytes()[:-200])
    done = run("pack", tmp_path / "images", tmp_path / "set", "--num_workers", workers)
    assert done.code == 2
    assert f"{paths[33]} cannot be decoded" in done.sentence
    assert left(tmp_path) == ["images"]


def test_a_disk_that_takes_no_more_is_said_and_nothing_stays(tmp_path: Path) -> None:
    fill(tmp_path / "images", 20)
    with no_file_above(10_000):
        done = run("pack", tmp_path / "images", tmp_path / "set", "--num_workers", "0")
    assert done.code == 2
    assert "set cannot be written (File too large): give another place" in done.sentence
    assert left(tmp_path) == ["images"]


MANY = 2000
"""Images that take a while, so that a signal comes before the end of it: 300 took 50 ms."""


def test_a_killed_pack_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    fill(tmp_path / "images", MANY)
    process = start("pack", tmp_path / "images", tmp_path / "set", "--num_workers", "0")
    signal_when(process, lambda: any(tmp_path.glob("set*")), signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("set*")] == ["set.unfinished"]
    # And it is in nobody's way.
    assert run("pack", tmp_path / "images", tmp_path / "set", "--num_workers", "0").code == 0
    assert len(load("packed", tmp_path / "set").train) == MANY
    assert [path.name for path in tmp_path.glob("*set*")] == ["set"]


def test_a_second_pack_of_the_same_directory_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "images", 2)
    target, said = tmp_path / "set", ""
    monkeypatch.setattr(locks, "NOTICE_AFTER_S", 0.1)
    with ThreadPoolExecutor(1) as second:
        with locks.alone(tmp_path / ".set.lock", "to write it"):
            result = second.submit(pack, str(tmp_path / "images"), str(target), num_workers=0)
            while "waiting" not in said:
                assert not result.done(), result.result()
                time.sleep(0.01)
                said += capsys.readouterr().out
            assert left(tmp_path) == [".set.lock", "images"]  # it has not begun
            target.mkdir()
        with pytest.raises(UserError, match="set was written by another pack meanwhile"):
            result.result(60)
    host = os.uname().nodename
    assert said.splitlines()[1:] == [
        f"waiting for process {os.getpid()} on {host} to write {target}"
    ]
    assert left(tmp_path) == ["images", "set"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_pack_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    fill(tmp_path / "images", MANY)
    process = start("pack", tmp_path / "images", tmp_path / "set", "--num_workers", "0")
    signal_when(process, lambda: any(tmp_path.glob("set*")), number)
    done = finish(process)
    assert (done.code, done.sentence) == (130, "error: interrupted")
    assert not any(tmp_path.glob("set*"))


# What it is good for ------------------------------------------------------------------------------

TRAINING = (
    *("--data.dataset", "packed", "--data.image_size", "16", "--data.batch_size", "10"),
    *("--trainer.limit_train_batches", "4", "--trainer.max_epochs", "3"),
)


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    done = fit(directory, *TRAINING, "--data.root", packed)
    assert done.err == ""
    assert (
        "packed: 40 images (40 labelled for the probe), 8 for validation, 2 classes, "
        "a file mapped into memory"
    ) in done.out
    return directory


def test_a_packed_set_trains_validates_and_probes(trained: Path) -> None:
    found = {name for row in rows(trained) for name in row}
    assert {"train/loss", "val/loss", "probe/val_top1", "health/rankme", "knn/val_top1"} <= found
    assert len(rows(trained)) == 12


def test_a_resume_in_mid_epoch_changes_not_a_bit(
    trained: Path, packed: Path, tmp_path: Path
) -> None:
    broken_off = (
        *("--trainer.callbacks+=recording.Interruption", "--trainer.callbacks.step", "7"),
        *("--checkpoint.every_n_steps", "3"),
    )
    with_root = (*TRAINING, "--data.root", packed, "--run_dir", tmp_path / "run")
    fitted = run("fit", *QUICK, *with_root, *broken_off)
    assert "InterruptionError" in fitted.sentence
    assert checkpoint(tmp_path / "run")["global_step"] == 6
    fit(tmp_path / "run", *TRAINING, "--data.root", packed, "--resume")
    assert same_weights(checkpoint(tmp_path / "run"), checkpoint(trained))
    assert cells(tmp_path / "run") == cells(trained)


def test_micro_batches_of_packed_images_train(packed: Path, tmp_path: Path) -> None:
    args = (*TRAINING, "--data.root", packed, "--model.micro_batch_size", "4")
    assert fit(tmp_path / "run", *args).err == ""
    assert len(rows(tmp_path / "run")) == 12


@pytest.mark.parametrize(
    "command",
    [
        ("linear", "--epochs", "2", "--learning_rates", "0.1", "--weight_decays", "0"),
        ("linear", "--augment", "--epochs", "2", "--learning_rates", "0.1", "--weight_decays", "0"),
        ("knn",),
        ("finetune", "--label_fraction", "0.5", "--epochs", "2", "--batch_size", "10"),
        ("validate",),
        ("predict",),
        ("views", "--images", "2", "--epochs", "1"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_take_packed_images(
    trained: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    quiet = {
        "finetune": ("--wandb", "off", "--trainer.accelerator", "cpu"),
        "validate": ("--trainer.accelerator", "cpu"),
        "predict": ("--trainer.accelerator", "cpu"),
    }.get(command[0], ())
    done = run(command[0], "--run_dir", copied, *command[1:], *quiet)
    assert done.code == 0, done


def test_a_report_of_a_run_on_packed_images(trained: Path) -> None:
    done = run("report", trained)
    assert done.code == 0, done
    assert (trained / "report.html").is_file()
