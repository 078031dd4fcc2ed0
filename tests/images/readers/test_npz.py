""".npz files: layouts, labels of any number, and what is said of unfit ones."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arrays import Arrays, array, counts, sentence
from noise import pixels

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.datasets import load
from simclr_pl.images.fingerprint import fingerprint


def npz(path: Path, **arrays: np.ndarray[Any, Any]) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def medmnist(channels: int = 3) -> Arrays:
    shape = (10, 10, 3) if channels == 3 else (10, 10)
    arrays: Arrays = {}
    for seed, (split, count) in enumerate({"train": 30, "val": 9, "test": 6}.items()):
        arrays[f"{split}_images"] = pixels(count, *shape, seed=seed)
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 3
    return arrays


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_in_medmnists_layout(tmp_path: Path, channels: int) -> None:
    arrays = medmnist(channels)
    splits = load("npz", npz(tmp_path / "med.npz", **arrays))
    assert splits.classes == ("0", "1", "2")
    for name, split in zip(("train", "val", "test"), splits[:3], strict=True):
        source = array(split)
        images = arrays[f"{name}_images"]
        images = images.transpose(0, 3, 1, 2) if channels == 3 else images[:, None]
        assert source.channels == channels
        assert torch.equal(source.images, torch.from_numpy(images.copy()))
        assert source.labels.tolist() == arrays[f"{name}_labels"][:, 0].tolist()


def test_npz_without_labels_is_unlabelled(tmp_path: Path) -> None:
    splits = load("npz", npz(tmp_path / "a.npz", train_images=pixels(40, 8, 8)))
    assert splits.classes == ()
    assert splits.test is None
    assert splits.train.labels.unique().tolist() == [UNLABELLED]
    assert len(splits.val) == 4


def test_npz_without_val_has_a_holdout(tmp_path: Path) -> None:
    images, labels = pixels(60, 8, 8), np.arange(60) % 2
    splits = load("npz", npz(tmp_path / "a.npz", train_images=images, train_labels=labels))
    assert counts(splits.val.labels, 2) == [3, 3]
    assert counts(splits.train.labels, 2) == [27, 27]


def test_npz_may_have_unlabelled_images_among_others(tmp_path: Path) -> None:
    labels = np.array([UNLABELLED] * 20 + [0, 1] * 10)
    file = npz(tmp_path / "a.npz", train_images=pixels(40, 8, 8), train_labels=labels)
    splits = load("npz", file)
    assert splits.classes == ("0", "1")
    assert sorted(splits.val.labels.tolist()) == [0, 1]


IDENTIFIERS = {
    "from 100,000": np.array([100_000, 250_000, 175_000]),
    "ten million": np.array([10_000_000, 3, 4]),
    "2^62": np.array([2**62, 2**62 + 1, 0]),
    "of 64 bits without a sign": np.array([2**64 - 1, 2**63, 5], np.uint64),
    "bytes": np.array([255, 128, 7], np.uint8),
    "in order, but for one": np.array([0, 1, 3]),
}


@pytest.mark.parametrize("numbers", IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_classes_are_the_labels_that_occur_whatever_their_numbers(
    tmp_path: Path, numbers: np.ndarray[Any, Any]
) -> None:
    images, order = pixels(40, 8, 8), np.arange(40) % 3
    arrays = {"train_images": images, "train_labels": numbers[order], "test_images": images[:6]}
    arrays["test_labels"] = numbers[order[:6], None]
    splits = load("npz", npz(tmp_path / "a.npz", **arrays))
    assert splits.classes == tuple(map(str, sorted(numbers.tolist())))
    names = [str(numbers[place]) for place in order[:6]]
    assert splits.test is not None
    assert [splits.classes[label] for label in splits.test.labels.tolist()] == names
    held_out = [14, 13, 13]  # but for one each
    assert sorted(counts(splits.train.labels, 3)) == sorted(count - 1 for count in held_out)
    assert len(fingerprint(splits)) == 64


def test_signed_and_unsigned_labels_are_the_same_classes(tmp_path: Path) -> None:
    images, large = pixels(12, 8, 8), 2**63 - 1  # as float64, it would be 2^63
    arrays = {"train_images": images, "train_labels": np.array([large, UNLABELLED] * 6)}
    arrays |= {"val_images": images, "val_labels": np.array([large, 2**63] * 6, np.uint64)}
    splits = load("npz", npz(tmp_path / "a.npz", **arrays))
    assert splits.classes == (str(large), str(2**63))
    assert splits.train.labels.tolist() == [0, UNLABELLED] * 6
    assert splits.val.labels.tolist() == [0, 1] * 6


def test_classes_that_train_does_not_have_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = medmnist() | {"test_labels": np.array([0, 1, 7, 7, 9, 2])}
    splits = load("npz", npz(tmp_path / "a.npz", **arrays))
    assert splits.classes == ("0", "1", "2", "7", "9")
    said = "npz: 2 classes of test have no image in train, and count as wrong: 7, 9\n"
    assert capsys.readouterr().out == said


BAD_ARRAYS: dict[str, tuple[Arrays, str]] = {
    "no train_images": (
        {"images": pixels(4, 8, 8)},
        "a.npz has no array 'train_images', only images: give",
    ),
    "label below -1": ({**medmnist(), "test_labels": np.full(6, -2)}, "has a label -2: only -1"),
    "images without a shape": ({"train_images": np.uint8(7)}, "train_images"),
    "empty split": (
        {**medmnist(), "test_images": pixels(0, 10, 10, 3), "test_labels": np.zeros(0, int)},
        "a.npz's test split is empty: give it images, or leave it out",
    ),
    "empty train": ({"train_images": pixels(0, 8, 8)}, "a.npz's train split is empty"),
    "float images": (
        {"train_images": np.zeros((4, 8, 8))},
        "1 x float32 a pixel",
    ),
    "sixteen bits": (
        {"train_images": np.zeros((4, 8, 8), np.uint16)},
        "1 x uint16 a pixel",
    ),
    "images without height": ({"train_images": pixels(4, 64)}, "train_images"),
    "images of five dimensions": ({"train_images": pixels(4, 8, 8, 8, 1)}, "train_images"),
    "too few labels": ({**medmnist(), "train_labels": np.zeros(29)}, "train_labels"),
    "several labels an image": ({**medmnist(), "train_labels": np.zeros((30, 14))}, "train_labels"),
    "labels with fractions": ({**medmnist(), "train_labels": np.full(30, 0.5)}, "train_labels"),
    "labels in words": ({**medmnist(), "train_labels": np.array(["cat"] * 30)}, "train_labels"),
    "objects": ({"train_images": np.array([None] * 3, dtype=object)}, "not a readable .npz"),
    "too small": ({"train_images": pixels(4, 3, 3)}, "a.npz: train_images is [4, 3, 3], too small"),
    "gray val beside RGB": (
        {**medmnist(3), "val_images": pixels(9, 10, 10)},
        "a.npz's val split has images of 1 channels, but train has 3: give both as many",
    ),
}


@pytest.mark.parametrize(("arrays", "said"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_unfit_arrays_of_an_npz_are_said(tmp_path: Path, arrays: Arrays, said: str) -> None:
    file = npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError) as caught:
        load("npz", file)
    assert said in sentence(caught)


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **medmnist())
    return buffer.getvalue()


def npy_bytes() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels(4, 8, 8))
    return buffer.getvalue()


def one_byte_changed(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(content) // 2] ^= 255
    return bytes(changed)


NO_NPZ = {
    "text": b"train_images, train_labels\n",
    "empty": b"",
    "truncated": npz_bytes()[:-100],
    "changed": one_byte_changed(npz_bytes()),
    "single array": npy_bytes(),
}


@pytest.mark.parametrize("content", NO_NPZ.values(), ids=NO_NPZ.keys())
def test_a_file_that_is_no_npz_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.npz"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load("npz", file)
    said = sentence(caught)
    assert said.startswith(f"{file} is not a readable .npz file")
    assert "allow_pickle" not in said  # NumPy's advice to load it unsafely


def test_a_missing_npz_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.npz", tmp_path):
        with pytest.raises(UserError, match="there is no file"):
            load("npz", path)
