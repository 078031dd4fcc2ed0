"""Names of files and folders that are no UTF-8: trained on, and written where text is wanted."""

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, fit, run
from PIL import Image

from simclr_pl.__main__ import main
from simclr_pl.images.datasets import load
from simclr_pl.run.yaml_file import dump_yaml, read_config
from simclr_pl.writing import printable

NAMES = {b"caf\xe9": r"caf\xe9", "süß".encode(): "süß", b"two\nlines": r"two\nlines"}
"""Of class folders, and how they are shown."""


def strict(*args: object) -> str:
    """What a command writes to a stream that takes UTF-8 alone, as a terminal's."""
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with redirect_stdout(stream):
        code = main([str(arg) for arg in args])
        stream.flush()
    assert code == 0
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a name, that holds three classes and their images."""
    home = tmp_path_factory.mktemp("names") / os.fsdecode(b"h\xf6me")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name in NAMES:
            folder = home / "images" / split / os.fsdecode(name)
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                with (folder / os.fsdecode(b"\xe4%02d.png" % number)).open("wb") as file:
                    image.save(file, "PNG")
    return home


@pytest.fixture(scope="module")
def trained(home: Path) -> tuple[Path, str]:
    """A run on them, logged to W&B, and what was printed."""
    options = (
        "--data.dataset",
        "folder",
        "--data.root",
        home / "images",
        "--data.num_workers",
        "0",
    )
    quick = [option for option in QUICK if option not in ("--wandb", "off")]
    more = ("--data.batch_size", "24", "--wandb", "offline")
    return home / "run", strict("fit", *quick, *options, *more, "--run_dir", home / "run")


@pytest.mark.parametrize(("name", "shown"), NAMES.items())
def test_a_name_is_shown_with_what_is_no_utf8_escaped(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown
    shown.encode()


def test_classes_are_called_what_can_be_printed(home: Path) -> None:
    splits = load("folder", home / "images")
    assert sorted(splits.classes) == sorted(NAMES.values())
    names = {name.split(b"/")[0] for name in splits.train.names or ()}
    assert names == set(NAMES)


def test_a_run_is_trained_and_logged(trained: tuple[Path, str], home: Path) -> None:
    directory, out = trained
    assert "60 images (54 labelled for the probe), 6 for validation, 3 classes" in out
    assert r"h\udcf6me/run" in out  # a stream's own escape
    config = read_config(directory / "config.yaml")
    assert config["data"]["root"] == str(home / "images")
    assert r"Weights & Biases: not logged there (" in out
    assert r"h\xf6me/run has bytes in its name that are no UTF-8)" in out


def test_a_configuration_has_the_bytes_of_a_path(tmp_path: Path) -> None:
    root, text = os.fsdecode(b"h\xf6\xff"), r"\udcf6 and \\udcf6"
    path = tmp_path / "config.yaml"
    for content in ({"data": {"root": root, "more": [root, 1, "x"]}, root: 3e-1}, {"a": text}):
        path.write_text(dump_yaml(content), encoding="utf-8")
        assert read_config(path) == content


@pytest.mark.processes
def test_weights_and_biases_has_the_names_of_classes_and_data(home: Path, tmp_path: Path) -> None:
    quick = [option for option in QUICK if option not in ("--wandb", "off")]
    data = ("--data.dataset", "folder", "--data.root", home / "images", "--data.num_workers", "0")
    more = ("--data.batch_size", "24", "--wandb", "offline", "--tensorboard", "true")
    strict("fit", *quick, *data, *more, "--run_dir", tmp_path / "run")
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert log.stat().st_size > 1000
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_tensorboard_says_that_it_cannot_write_there(home: Path, tmp_path: Path) -> None:
    more = ("--tensorboard", "true", "--data.dataset", "digits")
    said = run("fit", *QUICK, *more, "--run_dir", home / "other").sentence
    assert r"h\xf6me/other has bytes in its name that are no UTF-8, and TensorBoard writes" in said
    assert not (home / "other").exists()


@pytest.mark.long
def test_it_is_resumed_evaluated_and_reported(trained: tuple[Path, str], home: Path) -> None:
    directory, _ = trained
    grid = ("--epochs", "1", "--learning_rates", "1", "--weight_decays", "0")
    assert "top1" in strict("linear", "--run_dir", directory, "--split", "val", *grid)
    result = json.loads((directory / "results" / "linear-val-seed0.json").read_text())
    assert result["checkpoint"] == str(directory / "checkpoints" / "last.ckpt")
    strict("report", directory)
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "<title>Run run</title>" in page
    strict("views", "--run_dir", directory)
    strict("validate", "--run_dir", directory)


def test_they_are_packed(home: Path) -> None:
    strict("pack", home / "images", home / "packed", "--num_workers", "0")
    folder, packed = (load(name, home / place) for name, place in KINDS)
    assert list(folder.train.names or ()) == list(packed.train.names or ())
    assert folder.classes == packed.classes
    data = ("--data.dataset", "packed", "--data.root", home / "packed", "--data.batch_size", "24")
    fit(home / "second", *data)


KINDS = (("folder", "images"), ("packed", "packed"))


def test_an_error_names_the_file(home: Path) -> None:
    outcome = run("pack", home / "images" / "nothing", home / "other")
    assert "there is no folder" in outcome.sentence
