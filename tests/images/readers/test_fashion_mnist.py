"""Fashion-MNIST: from IDX files, from Debian's folder, and what is said of broken ones."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import Arrays, array, counts, sentence
from noise import pixels

from simclr_pl import UserError
from simclr_pl.images.datasets import load, prepare


def idx(values: np.ndarray[Any, Any]) -> bytes:
    """LeCun's format: two zeros, type (8: bytes), dimensions, sizes (big-endian), values."""
    header = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_fashion(root: Path, *, gzipped: bool, train: int = 40, test: int = 20) -> Arrays:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    arrays: Arrays = {}
    for seed, (split, count) in enumerate({"train": train, "t10k": test}.items()):
        arrays[f"{split}-images-idx3-ubyte"] = pixels(count, 28, 28, seed=seed)
        arrays[f"{split}-labels-idx1-ubyte"] = np.arange(count) % 10
    for name, values in arrays.items():
        data = idx(values)
        (raw / f"{name}.gz").write_bytes(gzip.compress(data)) if gzipped else (
            raw / name
        ).write_bytes(data)
    return arrays


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.usefixtures("no_debian")
def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path, gzipped: bool) -> None:
    arrays = write_fashion(tmp_path, gzipped=gzipped)
    prepare("fashion_mnist", tmp_path)
    splits = load("fashion_mnist", tmp_path)
    train, test = array(splits.train), array(splits.test)
    assert train.images[:, 0].numpy().tolist() == arrays["train-images-idx3-ubyte"].tolist()
    assert test.images[:, 0].numpy().tolist() == arrays["t10k-images-idx3-ubyte"].tolist()
    assert test.labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert splits.classes[:2] == ("T-shirt/top", "Trouser")
    assert len(splits.classes) == 10
    assert counts(array(splits.val).labels, 10) == [1] * 10


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["short", "header", "empty", "changed", "no IDX"])
@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.usefixtures("no_debian")
def test_a_broken_idx_file_is_named(tmp_path: Path, name: str, damage: str, gzipped: bool) -> None:
    write_fashion(tmp_path, gzipped=gzipped)
    path = tmp_path / "FashionMNIST" / "raw" / (f"{name}.gz" if gzipped else name)
    good = path.read_bytes()
    middle = len(good) // 2
    bad = {
        "short": good[:middle],
        "header": good[:6],
        "empty": b"",
        "no IDX": b"HTML" + good[4:],
        "changed": good[:12] + bytes(255 - b for b in good[12:middle]) + good[middle:-3],
    }
    path.write_bytes(bad[damage])
    with pytest.raises(UserError, match="truncated or not an IDX file") as caught:
        load("fashion_mnist", tmp_path)
    assert sentence(caught).startswith(str(path))


@pytest.mark.parametrize("split", ["train", "t10k"])
@pytest.mark.usefixtures("no_debian")
def test_labels_of_another_file_are_named(tmp_path: Path, split: str) -> None:
    write_fashion(tmp_path, gzipped=False)
    raw = tmp_path / "FashionMNIST" / "raw"
    (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(30) % 10))
    with pytest.raises(UserError) as caught:
        load("fashion_mnist", tmp_path)
    count = {"train": 40, "t10k": 20}[split]
    assert sentence(caught) == (
        f"{raw} has {count} images in {split}-images-idx3-ubyte, and 30 labels in "
        f"{split}-labels-idx1-ubyte: copy both again"
    )


@pytest.mark.usefixtures("no_debian")
def test_idx_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path, gzipped=False)
    raw = tmp_path / "FashionMNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(20)))
    with pytest.raises(UserError, match="fashion_mnist's test split has labels from 0 to 19"):
        load("fashion_mnist", tmp_path)


@pytest.mark.usefixtures("no_debian")
def test_fashion_mnist_without_files_says_which_ones_go_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Fashion-MNIST is not in") as caught:
        load("fashion_mnist", tmp_path / "data")
    assert "train-images-idx3-ubyte.gz" in sentence(caught)
    assert f"{tmp_path}/data/FashionMNIST/raw" in sentence(caught)


@pytest.mark.data
def test_fashion_mnist_is_read_from_debians_folder(tmp_path: Path) -> None:
    prepare("fashion_mnist", tmp_path)
    assert not (tmp_path / "FashionMNIST").exists()  # nothing was downloaded
    splits = load("fashion_mnist", tmp_path)
    train, test = array(splits.train), array(splits.test)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert counts(test.labels, 10) == [1000] * 10
    assert counts(train.labels, 10) == [5400] * 10
    assert counts(array(splits.val).labels, 10) == [600] * 10
    # The values that are known for the whole of train, of which a sixth is counted.
    mean, std, _ = train.statistics()
    assert mean == pytest.approx([0.2860], abs=6e-5)
    assert std == pytest.approx([0.3530], abs=6e-5)
