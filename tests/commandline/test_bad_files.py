"""Files and folders that cannot be read or made end in one sentence that names them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, finish, refused, run, start
from noise import pixels, write_images


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "--config", tmp_path / "digts.yaml")
    assert str(tmp_path / "digts.yaml") in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {batch_size: 64", ("broken.yaml", "line 1")),
        ("data:\n  batch_size: 64\n bad indent", ("broken.yaml", "line 3")),
        ("just a sentence", ("broken.yaml",)),
        ("data:\n  batchsize: 64\n", ("data.batchsize", "did you mean 'data.batch_size'")),
        ("model:\n  temperature: warm\n", ("model.temperature", "warm")),
        (
            "data: {batch_size: 64}\nmodel: {}\ndata: {flip: 0}\n",
            ("broken.yaml: key data", "line 1 and again in line 3"),
        ),
        (
            "data:\n  flip: 0\n  jitter: 1\n  flip: 1\n",
            ("broken.yaml: key flip", "line 2 and again in line 4"),
        ),
        ("data: &x\n  flip: *x\n", ("broken.yaml: the value in line 1 is part of itself",)),
        (
            "".join(
                f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 1}]\n" for i in range(9)
            ),
            ("broken.yaml", "more than 100,000 values, with aliases written out"),
        ),
        ("[" * 10_000 + "]" * 10_000, ("broken.yaml", "deeper than 100 levels")),
        ("\0", ("broken.yaml is no text",)),
    ],
)
def test_a_broken_configuration_is_refused_with_what_is_wrong(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text(text)
    sentence = refused(tmp_path, "--config", config)
    for word in words:
        assert word in sentence, sentence


def test_a_key_twice_is_refused_wherever_values_are_given(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "--data", "{flip: 0.0, flip: 0.5}")
    assert "key flip stands in line 1 and again in line 1" in sentence
    part = tmp_path / "part.yaml"
    part.write_text("flip: 0.0\nflip: 0.5\n")
    sentence = refused(tmp_path, "--data", part)
    assert str(part) in sentence
    assert "line 1 and again in line 2" in sentence


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device or a pipe"),
    "a pipe": (os.mkfifo, "is a device or a pipe"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "a huge file": (huge, "has 1,099,511,627,776 bytes and is no configuration"),
    "no text": (lambda path: path.write_bytes(b"\x80PK\3\4"), "is no text"),
}


@pytest.mark.parametrize("case", NO_FILES)
@pytest.mark.parametrize("command", [("fit", *QUICK), ("views",), ("sweep", "--local", "1")])
def test_what_is_no_configuration_is_refused_by_every_command(
    tmp_path: Path, case: str, command: tuple[str, ...]
) -> None:
    make, words = NO_FILES[case]
    config = tmp_path / "config.yaml"
    make(config)
    before = sorted(tmp_path.rglob("*"))
    where = {"fit": "--run_dir", "views": "--out", "sweep": "--out"}[command[0]]
    sentence = run(*command, f"--config={config}", where, tmp_path / "new" / "run").sentence
    assert f"{config} {words}" in sentence
    assert "YAML file" in sentence
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_is_no_group_of_values(tmp_path: Path) -> None:
    assert "/dev/zero is a device" in refused(tmp_path, "--model", "/dev/zero")
    assert "/dev/zero is a device" in run("knn", "--data", "/dev/zero", "--run_dir", "x").sentence


def test_a_run_directory_that_is_a_file_stays_that_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    sentence = run("fit", *QUICK, "--run_dir", tmp_path / "taken").sentence
    assert f"{tmp_path / 'taken'} cannot be made a run directory" in sentence
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    sentence = run("fit", *QUICK, "--run_dir", tmp_path / "taken" / "below").sentence
    assert f"{tmp_path / 'taken' / 'below'} cannot be made a run directory" in sentence


def test_a_missing_folder_of_images_is_named(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "--data.dataset", "folder", "--data.root", tmp_path / "imgs")
    assert f"there is no folder {tmp_path / 'imgs'}" in sentence
    assert "--data.root" in sentence


def test_an_empty_folder_of_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "imgs" / "cats").mkdir(parents=True)
    sentence = refused(tmp_path, "--data.dataset", "folder", "--data.root", tmp_path / "imgs")
    assert f"{tmp_path / 'imgs'} holds no images" in sentence
    assert ".jpg" in sentence


def test_a_label_below_minus_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    labels = np.array([-2, *(i % 4 for i in range(39))])
    images = {"train_images": pixels(40, 8, 8), "val_images": pixels(40, 8, 8)}
    np.savez(path, train_labels=np.arange(40) % 4, val_labels=labels, **images)
    sentence = refused(
        tmp_path, "--data.dataset", "npz", "--data.root", path, "--data.batch_size", "8"
    )
    assert f"{path} has a label -2: only -1" in sentence


def test_a_broken_image_in_a_worker_is_named_on_one_line(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 24, 16, 16)
    broken = folder / "007.png"
    broken.write_bytes(broken.read_bytes()[:150])
    data = ("--data.dataset", "folder", "--data.root", folder, "--data.num_workers", "2")
    steps = ("--data.batch_size", "24", "--trainer.limit_train_batches", "1")
    # A process of its own, with W&B as it is by default: workers that die and W&B's service may add
    # nothing to the sentence, and leave nothing behind.
    recipe = QUICK[: QUICK.index("--wandb")]
    runs = tmp_path / "runs"
    outcome = finish(start("fit", *recipe, "--run_dir", runs / "one", *data, *steps))
    assert f"{broken} cannot be decoded" in outcome.sentence
    assert "remove it" in outcome.sentence
    assert not runs.exists(), sorted(runs.rglob("*"))


LONG = "x" * 300


@pytest.mark.parametrize(
    "args",
    [
        ("fit", *QUICK, "--run_dir", LONG),
        ("fit", *QUICK, "--config", LONG),
        ("fit", *QUICK, "--init_from", LONG),
        ("fit", *QUICK, "--data.dataset", "folder", "--data.root", LONG),
        ("validate", "--ckpt_path", LONG),
        ("validate", "--run_dir", LONG),
        ("views", f"--run_dir={LONG}"),
        ("views", f"--config={LONG}"),
        ("knn", "--checkpoint", LONG),
        ("report", LONG),
        ("pack", LONG, "packed"),
        ("sweep", "--local", "1", "--config", LONG),
    ],
    ids=lambda args: "-".join(args[:1] + args[-2:-1])[:40],
)
def test_a_name_that_no_file_can_have_is_refused_with_its_option(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = run(*args).sentence
    assert LONG in sentence
    assert "ile name too long" in sentence
    assert "Error" not in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_an_unknown_format_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {dataset: folder, root: nowhere}\n")
    sentence = run("views", "--config", config, "--out", tmp_path / "new" / "x.xyz").sentence
    assert "x.xyz" in sentence
    assert "png" in sentence
    assert not (tmp_path / "new").exists()
