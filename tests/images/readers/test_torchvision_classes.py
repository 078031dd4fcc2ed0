"""`torchvision:NAME`, from small files in the sets' own formats; what is no classification set."""

import hashlib
import inspect
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arrays import array, sentence
from commands import refused
from noise import pixels
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as tv

from simclr_pl.core.data.sources import Splits
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.readers.encoded import FileItems
from simclr_pl.images.readers.torchvision_classes import _SPLITS
from simclr_pl.images.workers.images import ImageFiles, WorkerImages


def read(name: str, root: Path, **args: Any) -> Splits:
    given = {"class_path": f"torchvision:{name}", "init_args": args}
    prepare(given, root)
    return load(given, root)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def whole_labels(splits: Splits) -> list[int]:
    labels = splits.train.labels.clone()
    assert splits.held is not None
    labels[splits.held] = splits.val.labels
    return labels.tolist()


def write_eurosat(root: Path, names: str = "abcd") -> list[Path]:
    """40 files of two sizes, one on its side."""
    files = []
    for place in range(40):
        path = root / "eurosat" / "2750" / names[place % len(names)] / f"{place:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if place == 7 else 1
        Image.fromarray(pixels(64, 64 + place % 2, 3, seed=place)).save(path, exif=exif)
        files.append(path)
    return sorted(files)


def test_a_set_of_files_is_read_as_a_folder_is(tmp_path: Path) -> None:
    files = write_eurosat(tmp_path)
    splits = read("EuroSAT", tmp_path)
    assert splits.classes == ("a", "b", "c", "d")
    assert whole_labels(splits) == [place // 10 for place in range(40)]
    assert isinstance(splits.train, FileItems)
    assert splits.test is None
    views, plan = SimCLRViews(16, seed=3), [torch.arange(0, 40, 3), torch.tensor([10, 17, 7])]
    theirs = ImageFiles(files, torch.zeros(40, dtype=torch.long)).prepared(views, views, 0)
    mine = splits.train.prepared(views, views, 0)
    got = mine.batches(plan, 2, "both", training=True)
    for batch, want in zip(got, theirs.batches(plan, 2, "both", training=True), strict=True):
        assert batch.images.equal(want.images)


def test_a_bad_file_is_named_or_left_out(tmp_path: Path) -> None:
    files = write_eurosat(tmp_path)
    files[5].write_bytes(files[5].read_bytes()[:300])
    views = SimCLRViews(16)
    with pytest.raises(UserError, match=r"torchvision:EuroSAT train item 5 \(.*/20.jpg\) cannot"):
        read("EuroSAT", tmp_path)
    source = load("torchvision:EuroSAT", tmp_path, on_bad_image="skip").train
    assert isinstance(source, WorkerImages)
    source.unreadable = None
    (batch,) = source.prepared(views, views, 0).batches([torch.arange(40)], 0, "clean")
    assert batch.index.tolist() == [i for i in range(40) if i != 5]


def test_a_download_goes_through_a_folder_of_its_own_and_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def download(self: Any) -> None:
        fetched.append(Path(self.root))
        write_eurosat(Path(self.root))

    monkeypatch.setattr(tv.EuroSAT, "download", download)
    for _ in range(2):
        assert len(read("EuroSAT", tmp_path).train) == 40
    assert fetched == [tmp_path / ".torchvision-EuroSAT.unfinished"]
    assert [path.name for path in tmp_path.glob("*") if path.is_dir()] == ["eurosat"]


def write_flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """24 flowers of one size: 12 to train on, 6 for val, 6 for test."""
    folder, images = root / "flowers-102", pixels(24, 20, 20, 3)
    (folder / "jpg").mkdir(parents=True)
    for place, image in enumerate(images, 1):
        Image.fromarray(image).save(folder / "jpg" / f"image_{place:05}.jpg", "PNG")
    ids = np.arange(1, 25)
    savemat(folder / "setid.mat", {"trnid": ids[:12], "valid": ids[12:18], "tstid": ids[18:]})
    savemat(folder / "imagelabels.mat", {"labels": ids % 3 + 1})
    known = dict(tv.Flowers102._file_dict)
    for key in ("label", "setid"):
        name = known[key][0]
        known[key] = (name, md5(folder / name))
    monkeypatch.setattr(tv.Flowers102, "_file_dict", known)
    return images


def test_splits_are_those_that_the_class_says_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.from_numpy(write_flowers(tmp_path, monkeypatch)).permute(0, 3, 1, 2)
    splits = read("Flowers102", tmp_path)
    assert splits.test is not None
    found = [array(source) for source in (splits.train, splits.val, splits.test)]
    assert [
        source.images.equal(want)
        for source, want in zip(found, images.split([12, 6, 6]), strict=True)
    ] == [True] * 3
    assert found[0].labels.tolist() == [1, 2, 0] * 4
    assert splits.classes[0] == "pink primrose"
    assert splits.held is None
    alone = read("Flowers102", tmp_path, split="test")
    assert (len(alone.train), alone.test) == (6, None)


def test_other_splits_are_said_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {}
    for seed, split in enumerate(("train", "test", "extra")):
        path = tmp_path / f"{split}_32x32.mat"
        images = pixels(20, 32, 32, 3, seed=seed).transpose(1, 2, 3, 0)
        savemat(path, {"X": images, "y": np.arange(20)[:, None] % 10 + 1})
        table[split] = ["nowhere", path.name, md5(path)]
    monkeypatch.setattr(tv.SVHN, "split_list", table)
    splits = read("SVHN", tmp_path)
    want = torch.from_numpy(pixels(20, 32, 32, 3)).permute(0, 3, 1, 2)
    assert array(splits.train).images.equal(want)
    assert whole_labels(splits) == [*range(1, 10), 0] * 2
    assert "torchvision:SVHN: splits that are left out: extra\n" in capsys.readouterr().out


def test_a_class_with_the_argument_train_has_train_and_test(tmp_path: Path) -> None:
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, (name, count) in enumerate({"train": 40, "t10k": 10}.items()):
        for kind, values in [
            ("images-idx3", pixels(count, 28, 28, seed=seed)),
            ("labels-idx1", (np.arange(count) % 10).astype(np.uint8)),
        ]:
            head = bytes([0, 0, 8, values.ndim]) + b"".join(
                s.to_bytes(4, "big") for s in values.shape
            )
            (raw / f"{name}-{kind}-ubyte").write_bytes(head + values.tobytes())
    splits = read("KMNIST", tmp_path)
    assert array(splits.train).images.equal(torch.from_numpy(pixels(40, 28, 28))[:, None])
    assert array(splits.test).labels.tolist() == list(range(10))
    assert splits.classes == tuple(tv.KMNIST.classes)


def write_pets(root: Path) -> None:
    """Four breeds, two of cats; files of several sizes."""
    folder = root / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split, count in {"trainval": 40, "test": 8}.items():
        lines = []
        for number in range(count):
            name = f"{'abcd'[number % 4]}_{split}{number}"
            Image.fromarray(pixels(20, 20 + number % 2, 3)).save(folder / "images" / f"{name}.jpg")
            lines.append(f"{name} {number % 4 + 1} {number % 4 // 2 + 1} 1\n")
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))


def test_labels_are_those_that_arguments_ask_for(tmp_path: Path) -> None:
    write_pets(tmp_path)
    breeds = [place % 4 for place in range(40)]
    for given in ({}, {"target_types": "category"}, {"target_types": ["category"]}):
        splits = read("OxfordIIITPet", tmp_path, **given)
        assert splits.classes == ("A", "B", "C", "D")
        assert whole_labels(splits) == breeds
    for kind in ("binary-category", ["binary-category"]):
        splits = read("OxfordIIITPet", tmp_path, target_types=kind)
        assert splits.classes == ("Cat", "Dog")
        assert whole_labels(splits) == [breed // 2 for breed in breeds]
        assert splits.test is not None
        assert splits.test.labels.tolist() == [0, 0, 1, 1] * 2
    with pytest.raises(UserError, match=r"the label of item 0 .*must be a whole number"):
        read("OxfordIIITPet", tmp_path, target_types=["category", "binary-category"])


def test_a_target_transform_changes_the_labels(tmp_path: Path) -> None:
    write_eurosat(tmp_path)
    splits = read("EuroSAT", tmp_path, target_transform=lambda label: 10 + label // 2)
    assert splits.classes == ("10", "11")
    assert whole_labels(splits) == [place // 20 for place in range(40)]


def test_a_set_of_one_given_part_has_no_other_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QMNIST's `what` beats `train`: test would be train's images again."""
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    rows = np.zeros((60, 8), np.int32)
    rows[:, 0] = np.arange(60) % 10
    arrays = {"images-idx3-ubyte": pixels(60, 28, 28), "labels-idx2-int": rows}
    for kind, (name, values) in zip((8, 12), arrays.items(), strict=True):
        head = bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">i4").tobytes()
        swapped = values.astype(values.dtype.newbyteorder(">"))
        (raw / f"qmnist-test-{name}").write_bytes(head + swapped.tobytes())
    monkeypatch.setattr(tv.QMNIST, "_check_exists", lambda self: True)
    splits = read("QMNIST", tmp_path, what="test")
    assert splits.test is None
    assert whole_labels(splits) == [place % 10 for place in range(60)]
    odd = read("QMNIST", tmp_path, what="test", target_transform=lambda label: int(label) % 2)
    assert whole_labels(odd) == [place % 2 for place in range(60)]


def test_arguments_of_the_class_are_given_below_init_args(tmp_path: Path) -> None:
    splits = read("FakeData", tmp_path, size=30, image_size=[3, 12, 12], num_classes=3)
    assert array(splits.train).images.shape == (30, 3, 12, 12)
    assert splits.classes == ("0", "1", "2")
    with pytest.raises(UserError, match="FakeData takes no argument 'sise', but size, image_size"):
        read("FakeData", tmp_path, sise=30)
    with pytest.raises(UserError, match="EMNIST needs the argument split: give"):
        read("EMNIST", tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flowers102", "has no 'flowers102', but .*near names: Flowers102"),
        ("VOCDetection", "holds boxes of objects, but a set of images with a class each"),
        ("Cityscapes", "holds masks"),
        ("Sintel", "holds optical flow"),
        ("InStereo2k", "holds pairs of images"),
        ("CocoCaptions", "holds texts"),
        ("UCF101", "holds videos"),
        ("ImageFolder", "holds files of any folder"),
        ("wrap_dataset_for_transforms_v2", "has no 'wrap_dataset"),
    ],
)
def test_what_is_no_classification_set_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(name, tmp_path)
    assert sentence(caught).startswith("data.dataset: torchvision")


@pytest.mark.usefixtures("no_internet")
@pytest.mark.parametrize("name", [n for n in tv.__all__ if inspect.isclass(getattr(tv, n))])
def test_each_class_is_refused_or_says_in_seconds_what_it_misses(tmp_path: Path, name: str) -> None:
    if name == "FakeData":
        return
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        read(name, tmp_path / "data", **({"split": "letters"} if name == "EMNIST" else {}))
    assert time.monotonic() - begun < 10
    said = sentence(caught)
    assert "torchvision:" + name in said
    assert " holds " in said or f"as torchvision.datasets.{name} wants them" in said


def test_the_table_of_splits_names_classes_that_there_are() -> None:
    for name, splits in _SPLITS.items():
        known = inspect.signature(getattr(tv, name)).parameters
        assert {key for args in splits.values() for key in args} <= known.keys()


def test_a_command_refuses_in_one_line_and_old_names_stay(tmp_path: Path) -> None:
    said = refused(tmp_path, "--data.dataset", "torchvision:VOCDetection")
    assert "data.dataset: torchvision:VOCDetection holds boxes of objects" in said
    said = refused(tmp_path, "--data.dataset", "cifar")
    assert "there are digits, fashion_mnist, cifar10, cifar100, stl10, folder" in said
    assert "hub:NAME, torchvision:NAME; did you mean cifar10?" in said
