"""Folders of images: which files become which split, and with which labels."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from simclr_pl import UserError
from simclr_pl.batch import UNLABELLED
from simclr_pl.data.datasets import load, prepare
from simclr_pl.data.readers import IMAGE_SUFFIXES
from simclr_pl.data.sources import ImageFiles


def fill(folder: Path, count: int, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{i:02d}{suffix}")


def names(source: object, root: Path) -> list[str]:
    assert isinstance(source, ImageFiles)
    return [str(path.relative_to(root)) for path in source.paths]


def test_a_folder_a_class(tmp_path: Path) -> None:
    fill(tmp_path / "dog", 20)
    fill(tmp_path / "cat", 10)
    splits = load("folder", tmp_path)
    assert splits.classes == ("cat", "dog")
    assert splits.test is None
    assert names(splits.train, tmp_path)[:1] == ["cat/00.png"]
    assert len(splits.train) == 30
    # A tenth of each class is held out, and its labels are hidden in train.
    assert splits.val.labels.tolist() == [0, 1, 1]
    assert int((splits.train.labels == UNLABELLED).sum()) == 3
    held = set(names(splits.val, tmp_path))
    for name, label in zip(
        names(splits.train, tmp_path), splits.train.labels.tolist(), strict=True
    ):
        assert label == (UNLABELLED if name in held else ["cat", "dog"].index(name[:3]))


def test_images_below_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    fill(tmp_path / "cat" / "2024" / "may", 5)
    fill(tmp_path / "cat", 5)
    fill(tmp_path / "dog", 10)
    splits = load("folder", tmp_path)
    assert splits.classes == ("cat", "dog")
    assert sum(name.startswith("cat/2024/may/") for name in names(splits.train, tmp_path)) == 5


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    splits = load("folder", tmp_path)
    assert splits.classes == ()
    assert len(splits.train) == 30
    assert len(splits.val) == 3
    assert splits.train.labels.unique().tolist() == [UNLABELLED]


def test_images_beside_class_folders_are_unlabelled(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    fill(tmp_path / "a", 10)
    fill(tmp_path / "b", 10)
    splits = load("folder", tmp_path)
    assert len(splits.train) == 60
    assert splits.classes == ("a", "b")
    # Only labelled images can be held out; the 40 have no class to balance.
    assert splits.val.labels.tolist() == [0, 1]
    labels = dict(zip(names(splits.train, tmp_path), splits.train.labels.tolist(), strict=True))
    assert all(labels[f"{i:02d}.png"] == UNLABELLED for i in range(40))
    assert sorted(labels.values()).count(1) == 9


def test_only_image_files_count_and_suffixes_in_any_case(tmp_path: Path) -> None:
    for i, suffix in enumerate(sorted(IMAGE_SUFFIXES)):
        (tmp_path / f"{i}{suffix}").write_bytes(b"")
        (tmp_path / f"{i}big{suffix.upper()}").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "list.csv").write_text("a,b")
    splits = load("folder", tmp_path)
    assert len(splits.train) == 2 * len(IMAGE_SUFFIXES)
    assert splits.classes == ()


def test_train_val_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        fill(tmp_path / split / "a", count)
        fill(tmp_path / split / "b", count)
    splits = load("folder", tmp_path)
    assert splits.classes == ("a", "b")
    assert splits.test is not None
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
    assert splits.val.labels.tolist() == [0] * 2 + [1] * 2
    assert splits.test.labels.tolist() == [0] * 3 + [1] * 3
    assert all(name.startswith("test/") for name in names(splits.test, tmp_path))


def test_a_class_missing_in_val_keeps_the_numbers_of_train(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        fill(tmp_path / "train" / name, 4)
    fill(tmp_path / "val" / "c", 2)
    assert load("folder", tmp_path).val.labels.tolist() == [2, 2]


def test_without_a_val_folder_a_tenth_of_train_is_held_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "train" / name, 20)
        fill(tmp_path / "test" / name, 2)
    splits = load("folder", tmp_path)
    assert splits.val.labels.tolist() == [0, 0, 1, 1]
    assert len(splits.train) == 40
    assert splits.test is not None
    assert len(splits.test) == 4


def test_train_may_be_unlabelled(tmp_path: Path) -> None:
    fill(tmp_path / "train", 10)
    fill(tmp_path / "val", 3)
    splits = load("folder", tmp_path)
    assert (len(splits.train), len(splits.val), splits.classes) == (10, 3, ())


def test_the_order_of_files_is_that_of_their_names(tmp_path: Path) -> None:
    tmp_path.joinpath("x").mkdir()
    for name in ("b.png", "a.png", "c.jpg"):
        (tmp_path / "x" / name).write_bytes(b"")
    assert names(load("folder", tmp_path).train, tmp_path) == ["x/a.png", "x/b.png", "x/c.jpg"]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*gone"):
        load("folder", tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"there is no folder .*file"):
        load("folder", tmp_path / "file")


@pytest.mark.parametrize("split", [None, "train", "val", "test"])
def test_a_folder_without_images_is_said(tmp_path: Path, split: str | None) -> None:
    if split is not None:
        for name in ("train", "val", "test"):
            fill(tmp_path / name / "a", 3)
        empty = tmp_path / split
        for path in list((empty / "a").iterdir()):
            path.unlink()
    with pytest.raises(UserError, match=f"{split or tmp_path.name} holds no images"):
        load("folder", tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_does_not_have_is_said(tmp_path: Path, split: str) -> None:
    fill(tmp_path / "train" / "a", 3)
    fill(tmp_path / split / "a", 3)
    fill(tmp_path / split / "stranger", 1)
    with pytest.raises(UserError, match=f"{split}/stranger is a class that train/ doesn't have"):
        load("folder", tmp_path)


def test_nothing_is_downloaded_for_a_folder(tmp_path: Path) -> None:
    prepare("folder", tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_the_holdout_is_the_same_for_everybody_with_the_same_seed(tmp_path: Path) -> None:
    fill(tmp_path / "a", 30)
    fill(tmp_path / "b", 30)
    first, again, other = (load("folder", tmp_path, seed).val for seed in (0, 0, 1))
    assert names(first, tmp_path) == names(again, tmp_path)
    assert names(first, tmp_path) != names(other, tmp_path)
    assert torch.equal(first.labels, other.labels)
