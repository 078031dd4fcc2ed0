"""Data sets: splits, the holdout, every file format, and what is said when one is bad."""

import gzip
import hashlib
import io
import pickle
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets as tv

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.datasets import DATASETS, load, prepare
from simclr_pl.images.fingerprint import fingerprint
from simclr_pl.images.readers import fashion_mnist
from simclr_pl.images.splits import HOLDOUT, holdout
from simclr_pl.images.workers.images import ImageFiles

Arrays = dict[str, np.ndarray[Any, Any]]


def array(source: object) -> ArrayImages:
    assert isinstance(source, ArrayImages)
    return source


def counts(labels: torch.Tensor, classes: int) -> list[int]:
    return torch.bincount(labels[labels != UNLABELLED], minlength=classes).tolist()


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def sentence(caught: pytest.ExceptionInfo[UserError]) -> str:
    """What was said, if it is one sentence."""
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert ":)" not in said
    assert "\\n" not in said
    return said


# The holdout -----------------------------------------------------------------------------------


def test_the_holdout_takes_a_tenth_of_each_class() -> None:
    labels = torch.repeat_interleave(torch.tensor([0, 3, 1]), torch.tensor([200, 50, 30]))
    held = holdout(labels, seed=0)
    assert counts(labels[held], 4) == [20, 3, 0, 5]
    assert torch.equal(held, held.unique())  # rising, each once


def test_the_holdout_takes_one_of_a_small_class_at_least() -> None:
    labels = torch.tensor([0] * 40 + [1, 1, 2])
    assert counts(labels[holdout(labels, seed=3)], 3) == [4, 1, 1]


def test_the_holdout_ignores_unlabelled_images_unless_all_are() -> None:
    labels = torch.tensor([UNLABELLED] * 100 + [0] * 20 + [1] * 20)
    assert sorted(labels[holdout(labels, 0)].tolist()) == [0, 0, 1, 1]
    assert len(holdout(torch.full((70,), UNLABELLED), 0)) == 7


def test_the_holdout_is_random_in_each_class_and_hangs_on_the_seed_alone() -> None:
    labels = torch.arange(1000) % 4
    first = holdout(labels, 0)
    assert torch.equal(first, holdout(labels, 0))
    shared = set(first.tolist()) & set(holdout(labels, 1).tolist())
    assert len(shared) < 30  # of 100, by chance 10
    # Over many seeds every image is as likely as any other: a tenth of 300, give or take.
    chosen = torch.zeros(40)
    for seed in range(300):
        chosen[holdout(torch.arange(40) % 2, seed)] += 1
    assert 8 <= float(chosen.min()) <= 30 <= float(chosen.max()) <= 60


# Digits ----------------------------------------------------------------------------------------


def test_digits_are_sklearns_split_into_disjoint_balanced_train_and_test() -> None:
    from sklearn.datasets import load_digits

    splits = load("digits", "unused")
    train, test = array(splits.train), array(splits.test)
    assert splits.classes == tuple("0123456789")
    assert len(train) + len(test) == 1797
    assert 0.18 < len(test) / 1797 < 0.2
    assert train.images.shape[1:] == (1, 8, 8)
    bunch = load_digits()
    per_class = np.bincount(bunch.target)
    for got, total in zip(counts(test.labels, 10), per_class, strict=True):
        assert abs(got - 0.19 * total) <= 1
    # Together they are the bunch, each image once: 16 levels spread over 0 to 255.
    everything = torch.cat([train.images, test.images]).flatten(1)
    want = torch.from_numpy(np.rint(bunch.data * 255 / 16).astype(np.uint8))
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, want.numpy()))
    # And each with its own label.
    label_of = {bytes(row): label for row, label in zip(want.numpy(), bunch.target, strict=True)}
    for image, label in zip(test.images.flatten(1).numpy(), test.labels.tolist(), strict=True):
        assert label_of[bytes(image)] == label


def test_digits_hold_out_a_tenth_of_each_class_and_hide_its_labels() -> None:
    splits = load("digits", "unused")
    train, val = array(splits.train), array(splits.val)
    hidden = train.labels == UNLABELLED
    assert torch.equal(train.images[hidden], val.images)
    held, kept = counts(val.labels, 10), counts(train.labels, 10)
    assert int(hidden.sum()) == len(val) == sum(held)
    for h, k in zip(held, kept, strict=True):
        assert abs(h - HOLDOUT * (h + k)) <= 0.5
    assert UNLABELLED not in val.labels


def test_the_split_seed_changes_val_and_nothing_else() -> None:
    first, again, other = (load("digits", "unused", seed) for seed in (0, 0, 1))
    for a, b in zip(first[:3], again[:3], strict=True):
        assert torch.equal(array(a).images, array(b).images)
        assert torch.equal(array(a).labels, array(b).labels)
    assert torch.equal(array(first.test).images, array(other.test).images)
    assert torch.equal(array(first.train).images, array(other.train).images)
    assert not torch.equal(array(first.val).images, array(other.val).images)


# Statistics ------------------------------------------------------------------------------------


def test_statistics_are_mean_and_standard_deviation_of_each_channel() -> None:
    images = torch.from_numpy(pixels(50, 3, 9, 9)) // torch.tensor([1, 2, 4])[:, None, None]
    source = ArrayImages(images.to(torch.uint8), torch.zeros(50, dtype=torch.int64))
    mean, std, _ = source.statistics()
    x = source.images.double() / 255
    assert mean == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=6e-5)
    assert std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), abs=6e-5)


def test_statistics_of_digits() -> None:
    train = array(load("digits", "unused").train)
    mean, std, _ = train.statistics()
    x = train.images.double() / 255
    assert mean == pytest.approx([float(x.mean())], abs=6e-5)
    assert std == pytest.approx([float(x.std(correction=0))], abs=6e-5)


def coloured(count: int, *levels: int) -> ArrayImages:
    """Noise in each channel, as strong as its level says."""
    images = torch.from_numpy(pixels(count, len(levels), 16, 16))
    faded = images * torch.tensor(levels)[:, None, None] // 255
    return ArrayImages(faded.to(torch.uint8), torch.zeros(count))


def test_a_channel_without_contrast_is_divided_by_the_strongest_ones_deviation() -> None:
    got = coloured(50, 255, 200, 0).statistics()
    assert got.empty == (2,)
    assert got.mean[2] == 0
    assert got.std == pytest.approx((0.291, 0.228, got.std[0]), abs=5e-4)
    # What a JPEG file leaves in an empty channel is no contrast either; a faint colour is.
    assert coloured(50, 255, 200, 3).statistics().empty == (2,)
    assert coloured(50, 255, 200, 10).statistics().empty == ()


def test_contrast_is_measured_against_other_colours_alone() -> None:
    # Masks of 0 and 1, and a faint channel among five, which jitter does not mix.
    mask = ArrayImages(coloured(50, 255).images.gt(127).byte(), torch.zeros(50))
    assert mask.statistics() == ((0.002,), (0.002,), ())
    std, empty = coloured(50, 255, 255, 255, 255, 2).statistics()[1:]
    assert empty == ()
    assert std[4] < 0.01 * std[0]


@pytest.mark.parametrize("count", [4, 1])
def test_a_set_without_any_contrast_is_divided_by_one(count: int) -> None:
    source = ArrayImages(torch.full((count, 3, 8, 8), 51, dtype=torch.uint8), torch.zeros(count))
    assert source.statistics() == ((0.2,) * 3, (1.0,) * 3, (0, 1, 2))


def test_views_of_an_empty_channel_are_as_large_as_those_of_others() -> None:
    source = coloured(64, 255, 255, 0)
    mean, std, _ = source.statistics()
    views = SimCLRViews(16, jitter=1.0, mean=mean, std=std)
    both = torch.cat(views(source.images, torch.arange(64), 0))
    assert both[:, 2].abs().max() <= 1 / min(std[:2])
    assert 0 < both[:, 2].std() < 2 * both[:, :2].std()


def test_statistics_of_files_are_imagenets() -> None:
    mean, std, _ = ImageFiles([], torch.zeros(0)).statistics()
    assert mean == (0.485, 0.456, 0.406)
    assert std == (0.229, 0.224, 0.225)


# Fashion-MNIST ---------------------------------------------------------------------------------


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "FASHION_DEBIAN", tmp_path / "no-such-package")


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
@pytest.mark.parametrize("damage", ["short", "header", "empty", "changed"])
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
        "changed": good[:12] + bytes(255 - b for b in good[12:middle]) + good[middle:-3],
    }
    path.write_bytes(bad[damage])
    with pytest.raises(UserError, match="truncated or not an IDX file") as caught:
        load("fashion_mnist", tmp_path)
    assert sentence(caught).startswith(str(path))


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


# NumPy files -----------------------------------------------------------------------------------


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
    "no train_images": ({"images": pixels(4, 8, 8)}, "no array 'train_images', only images"),
    "label below -1": ({**medmnist(), "test_labels": np.full(6, -2)}, "has a label -2: only -1"),
    "images without a shape": ({"train_images": np.uint8(7)}, "train_images"),
    "empty split": (
        {**medmnist(), "test_images": pixels(0, 10, 10, 3), "test_labels": np.zeros(0, int)},
        "npz's test split is empty",
    ),
    "empty train": ({"train_images": pixels(0, 8, 8)}, "train split is empty"),
    "float images": ({"train_images": np.zeros((4, 8, 8))}, "must be uint8"),
    "sixteen bits": ({"train_images": np.zeros((4, 8, 8), np.uint16)}, "must be uint8"),
    "images without height": ({"train_images": pixels(4, 64)}, "train_images"),
    "images of five dimensions": ({"train_images": pixels(4, 8, 8, 8, 1)}, "train_images"),
    "too few labels": ({**medmnist(), "train_labels": np.zeros(29)}, "train_labels"),
    "several labels an image": ({**medmnist(), "train_labels": np.zeros((30, 14))}, "train_labels"),
    "labels with fractions": ({**medmnist(), "train_labels": np.full(30, 0.5)}, "train_labels"),
    "labels in words": ({**medmnist(), "train_labels": np.array(["cat"] * 30)}, "train_labels"),
    "objects": ({"train_images": np.array([None] * 3, dtype=object)}, "not a readable .npz"),
    "too small": ({"train_images": pixels(4, 3, 3)}, "too small"),
    "gray val beside RGB": ({**medmnist(3), "val_images": pixels(9, 10, 10)}, "val split"),
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


def test_stl10_is_read_with_its_unlabelled_images_in_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stl10_binary"
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


# Downloads that fail, and names ----------------------------------------------------------------

DOWNLOADS = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "stl10": "stl10_binary.tar.gz",
    "fashion_mnist": "train-images-idx3-ubyte.gz",
}


@pytest.fixture
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name resolves, whether or not this machine has internet."""

    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


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


@pytest.mark.parametrize(
    ("name", "near"),
    [("cifar-10", "cifar10"), ("digit", "digits"), ("fashionmnist", "fashion_mnist")],
)
@pytest.mark.parametrize("call", [load, prepare])
def test_a_misspelt_name_is_answered_with_the_near_one(
    tmp_path: Path, name: str, near: str, call: Any
) -> None:
    with pytest.raises(UserError, match=rf"unknown data set '{name}'.*did you mean {near}\?"):
        call(name, tmp_path)


def test_an_unknown_name_is_answered_with_all_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load("xyz", tmp_path)
    assert all(name in sentence(caught) for name in DATASETS)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "npz"])
def test_sets_without_a_download_need_no_preparation(tmp_path: Path, name: str) -> None:
    prepare(name, tmp_path / "data")
    assert not (tmp_path / "data").exists()
