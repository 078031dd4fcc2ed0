"""CIFAR and STL-10 from small files in their own formats; downloads that fail."""

import hashlib
import pickle
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arrays import Arrays, array, counts, sentence
from noise import pixels
from torchvision import datasets as tv
from torchvision.datasets import utils

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.readers import checksums


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(checksums, "_whole", set())


# torchvision's sets, from small files in their own formats ---------------------------------------


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_pickle(path: Path, content: dict[str, Any]) -> tuple[str, str]:
    """Returns a row of torchvision's checksum tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path.name, md5(path)


def rows(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """CIFAR's layout: 1,024 reds, then greens, then blues."""
    return images.reshape(len(images), -1)


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    folder = root / "cifar-10-batches-py"
    arrays = {"train": pixels(100, 3, 32, 32), "test": pixels(10, 3, 32, 32, seed=1)}
    train = [
        write_pickle(
            folder / f"data_batch_{i + 1}",
            {"data": rows(arrays["train"][20 * i : 20 * i + 20]), "labels": [*range(10)] * 2},
        )
        for i in range(5)
    ]
    test = write_pickle(
        folder / "test_batch", {"data": rows(arrays["test"]), "labels": [*range(9, -1, -1)]}
    )
    names = [f"class{i}" for i in range(10)]
    filename, checksum = write_pickle(folder / "batches.meta", {"label_names": names})
    monkeypatch.setattr(tv.CIFAR10, "train_list", [list(row) for row in train])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [list(test)])
    meta = {"filename": filename, "key": "label_names", "md5": checksum}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta)
    return arrays


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    folder = root / "cifar-100-python"
    arrays = {"train": pixels(200, 3, 32, 32), "test": pixels(100, 3, 32, 32, seed=1)}
    coarse = {"coarse_labels": [0] * 200}
    train = write_pickle(
        folder / "train",
        {"data": rows(arrays["train"]), "fine_labels": [*range(100)] * 2, **coarse},
    )
    test = write_pickle(
        folder / "test",
        {"data": rows(arrays["test"]), "fine_labels": [*range(99, -1, -1)], **coarse},
    )
    names = [f"class{i}" for i in range(100)]
    filename, checksum = write_pickle(folder / "meta", {"fine_label_names": names})
    monkeypatch.setattr(tv.CIFAR100, "train_list", [list(train)])
    monkeypatch.setattr(tv.CIFAR100, "test_list", [list(test)])
    meta = {"filename": filename, "key": "fine_label_names", "md5": checksum}
    monkeypatch.setattr(tv.CIFAR100, "meta", meta)
    return arrays


@pytest.mark.parametrize(("name", "write"), [("cifar10", cifar10), ("cifar100", cifar100)])
def test_cifar_is_read_from_torchvisions_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Any
) -> None:
    arrays = write(tmp_path, monkeypatch)
    classes = int(name.removeprefix("cifar"))
    prepare(name, tmp_path)  # the files are there: nothing to download
    splits = load(name, tmp_path)
    train, test = array(splits.train), array(splits.test)
    assert torch.equal(train.images, torch.from_numpy(arrays["train"]))
    assert torch.equal(test.images, torch.from_numpy(arrays["test"]))
    assert test.labels.tolist() == list(range(classes))[::-1]
    assert splits.classes == tuple(f"class{i}" for i in range(classes))
    known = train.labels != UNLABELLED
    assert torch.equal(train.labels[known], (torch.arange(len(train)) % classes)[known])
    assert counts(array(splits.val).labels, classes) == [1] * classes


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    folder = root / "stl10_binary"
    folder.mkdir()
    arrays = {
        "train": pixels(20, 3, 96, 96),
        "test": pixels(10, 3, 96, 96, seed=1),
        "unlabeled": pixels(30, 3, 96, 96, seed=2),
    }
    for name, images in arrays.items():
        # Its pixels are stored column by column, its labels from 1.
        (folder / f"{name}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        if name != "unlabeled":
            labels = np.arange(len(images)) % 10 + 1
            (folder / f"{name}_y.bin").write_bytes(labels.astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    train_files = ["train_X.bin", "train_y.bin", "unlabeled_X.bin"]
    table = {
        name: [name, md5(folder / name)] for name in [*train_files, "test_X.bin", "test_y.bin"]
    }
    monkeypatch.setattr(tv.STL10, "train_list", [table[name] for name in train_files])
    monkeypatch.setattr(tv.STL10, "test_list", [table["test_X.bin"], table["test_y.bin"]])
    return arrays


def test_stl10_is_read_with_its_unlabelled_images_in_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = stl10(tmp_path, monkeypatch)
    prepare("stl10", tmp_path)
    splits = load("stl10", tmp_path)
    train, test = array(splits.train), array(splits.test)
    want = np.concatenate([arrays["train"], arrays["unlabeled"]])
    assert torch.equal(train.images, torch.from_numpy(want))
    assert torch.equal(test.images, torch.from_numpy(arrays["test"]))
    assert test.labels.tolist() == list(range(10))
    assert train.labels[20:].tolist() == [UNLABELLED] * 30
    assert counts(array(splits.val).labels, 10) == [1] * 10
    assert splits.classes == tuple(f"class{i}" for i in range(10))


# Checksums ---------------------------------------------------------------------------------------

WRITERS = {"cifar10": cifar10, "cifar100": cifar100, "stl10": stl10, "torchvision:STL10": stl10}


@pytest.mark.parametrize("home", ["written", "not written"])
@pytest.mark.parametrize("name", WRITERS)
def test_gigabytes_are_hashed_once_and_again_when_a_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, home: str
) -> None:
    if home == "not written":
        (tmp_path / "home").write_text("a file, in which no cache can be")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    WRITERS[name](tmp_path, monkeypatch)
    hashed: Counter[Path] = Counter()
    calculate = utils.calculate_md5

    def count(path: str, *args: Any, **options: Any) -> str:
        hashed[Path(path)] += "meta" not in Path(path).name  # a file of 200 bytes
        return calculate(path, *args, **options)

    monkeypatch.setattr(utils, "calculate_md5", count)

    def start() -> list[int]:
        """A process: how often it hashes each of the files that it hashes."""
        hashed.clear()
        monkeypatch.setattr(checksums, "_whole", set())
        prepare(name, tmp_path)
        load(name, tmp_path)
        return sorted((+hashed).values())

    files = {"cifar10": 6, "cifar100": 2}.get(name, 5)
    assert start() == [1] * files
    assert start() == ([] if home == "written" else [1] * files)

    changed = max(tmp_path.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)  # as many bytes, in the same file
    with pytest.raises(UserError, match="or not whole"):
        load(name, tmp_path)


# Downloads that fail, and names ----------------------------------------------------------------

DOWNLOADS = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "stl10": "stl10_binary.tar.gz",
    "fashion_mnist": "train-images-idx3-ubyte.gz",
}


@pytest.mark.usefixtures("no_internet", "no_debian")
@pytest.mark.parametrize(("name", "file"), DOWNLOADS.items())
def test_without_internet_the_sentence_says_which_file_goes_where(
    tmp_path: Path, name: str, file: str
) -> None:
    root = tmp_path / "data"
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        prepare(name, root)
    assert time.monotonic() - begun < 10
    said = sentence(caught)
    assert said.startswith(f"{name} is not in {root} and could not be downloaded (")
    where = root / "FashionMNIST" / "raw" if name == "fashion_mnist" else root
    assert f" {file} " in said or f" {file}, " in said
    assert f" into {where}" in said


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_reading_what_was_never_downloaded_says_which_file_goes_where(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(name, tmp_path)
    assert f"put {DOWNLOADS[name]} into {tmp_path}" in sentence(caught)


def test_a_file_of_a_wrong_checksum_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10(tmp_path, monkeypatch)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError) as caught:
        load("cifar10", tmp_path)
    assert f"put cifar-10-python.tar.gz into {tmp_path}" in sentence(caught)
