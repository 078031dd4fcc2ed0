"""Folders of images: which files become which split, with which labels, and what is left out."""

import os
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.files.formats import suffixes
from simclr_pl.images.workers.images import ImageFiles


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
    for i, suffix in enumerate(sorted(suffixes())):
        (tmp_path / f"{i}{suffix}").write_bytes(b"")
        (tmp_path / f"{i}big{suffix.upper()}").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "list.csv").write_text("a,b")
    splits = load("folder", tmp_path)
    assert len(splits.train) == 2 * len(suffixes())
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
    with pytest.raises(UserError, match=f"{split or tmp_path.name} holds no images") as refused:
        load("folder", tmp_path)
    remedy = "remove the folder" if split in ("val", "test") else "give the folder that holds them"
    assert remedy in str(refused.value)


def test_a_class_folder_without_images_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        fill(tmp_path / split / "a", 3)
        fill(tmp_path / split / "b" / "below", 3)
    (tmp_path / "train" / "c" / "below").mkdir(parents=True)
    (tmp_path / "train" / "c" / "notes.txt").touch()
    (tmp_path / "train" / "d").mkdir()
    (tmp_path / "train" / "e").symlink_to("a")  # is there already, under its own name
    for _ in range(2):
        assert load("folder", tmp_path).classes == ("a", "b")
    said = capsys.readouterr().out
    assert "2 folders without images (c, d)" in said
    assert "1 of kinds that are not read (.txt)" in said
    fill(tmp_path / "val" / "c", 1)
    with pytest.raises(UserError, match="val/c is a class that train/ doesn't have"):
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


# Links ------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    fill(root / "cat", 3)
    fill(elsewhere / "more", 4)
    fill(elsewhere / "dog", 2)
    (root / "cat" / "b").symlink_to(elsewhere / "more")
    (root / "dog").symlink_to(elsewhere / "dog")
    splits = load("folder", root)
    assert splits.classes == ("cat", "dog")
    found = names(splits.train, root)
    assert found[:4] == ["cat/00.png", "cat/01.png", "cat/02.png", "cat/b/00.png"]
    assert len(found) == 9


@pytest.mark.parametrize("to", ["..", "../..", ".", "../cat/../../set"])
def test_a_link_that_leads_back_neither_doubles_the_set_nor_loops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    root = tmp_path / "set"
    fill(root / "cat" / "old", 3)
    fill(root / "dog", 2)
    (root / "cat" / "again").symlink_to(to)
    found = names(load("folder", root).train, root)
    assert found == [*(f"cat/old/0{i}.png" for i in range(3)), "dog/00.png", "dog/01.png"]
    assert "1 folders that were there already (cat/again)" in capsys.readouterr().out


def test_a_folder_counts_under_its_own_name_and_not_under_a_links(tmp_path: Path) -> None:
    fill(tmp_path / "zebra", 3)
    (tmp_path / "animal").symlink_to("zebra")
    (tmp_path / "zebra" / "round").symlink_to("round")
    (tmp_path / "zebra" / "gone.png").symlink_to("nowhere.png")
    assert load("folder", tmp_path).classes == ("zebra",)
    assert len(load("folder", tmp_path).train) == 3


# What is taken, and what is left out --------------------------------------------------------------


def test_whatever_the_decoders_read_is_taken(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    for suffix, kind in (
        (".gif", "GIF"), (".jfif", "JPEG"), (".jp2", "JPEG2000"), (".avif", "AVIF"), ("", "WEBP"),
        (".jpe", "JPEG"), (".JPG", "MPO"), (".qoi", "QOI"),
    ):  # fmt: skip
        image.save(tmp_path / f"image{suffix}", kind)
    (tmp_path / "README").write_text("P5 and PyTorch, BMP and GIF")
    (tmp_path / "Py").write_text("Python")
    assert len(load("folder", tmp_path).train) == 8


def test_what_is_left_out_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "train" / "cat", 4)
    fill(tmp_path / "test" / "cat", 2)
    fill(tmp_path / "unlabeled", 2)
    hidden = (".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX")
    for name in hidden:
        fill(tmp_path / "train" / name, 1)
    fill(tmp_path / "train" / "cat" / "@eaDir", 1)
    for name in ("._00.png", "Thumbs.db", "a.txt", "b.txt", "photo.heic", "LICENSE"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"no image")
    load("folder", tmp_path)
    load("folder", tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    counts, _, left = line.partition("; left out: ")
    assert counts == f"{tmp_path}: 6 images (train 4, test 2)"
    first, *rest = left.split("; ")
    assert first.startswith("7 hidden or of a system (")
    assert sorted(rest) == [
        "1 folders beside train/ (unlabeled)",
        "1 of a format that is not read here, HEIC: pip install pillow-heif, which reads it "
        "(.heic)",
        "1 without suffix that are no images (LICENSE)",
        "2 of kinds that are not read (.txt)",
    ]


def test_nothing_left_out_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "cat", 3)
    load("folder", tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}: 3 images; nothing is left out\n"


def test_a_folder_of_what_is_not_read_says_why(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"holds no images .*left out: 3 .*pillow-heif"):
        load("folder", tmp_path)


def test_the_order_is_that_of_names_whatever_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 2)
    for name in ("a", "a-b", "B", "a b", "é", os.fsdecode(b"\xff"), "a/c", "a/c.d", "a/C"):
        fill(tmp_path / name, 2)
    before = names(load("folder", tmp_path).train, tmp_path)
    flat = sorted(tmp_path.glob("*.png"))
    # What has always been the order: files beside the classes, then class by class.
    want = [*flat, *(p for c in sorted(tmp_path.iterdir()) for p in sorted(c.glob("**/*.png")))]
    assert before == [str(path.relative_to(tmp_path)) for path in want]
    scan = os.scandir

    class Shuffled:
        def __init__(self, folder: str) -> None:
            with scan(folder) as entries:
                self.entries = random.Random(0).sample(found := list(entries), len(found))

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert names(load("folder", tmp_path).train, tmp_path) == before


# Splits and classes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        (("Training", "valid"), "rename Training to train and valid to val"),
        (("Train", "Test"), "rename Test to test and Train to train"),
        (("train", "valid"), "rename valid to val"),
        (("train", "val", "Testing"), "rename Testing to test"),
        (("training",), "rename training to train"),
        (("val", "test"), "but no train/: give it one, or give the folder to train on as"),
        (("test",), "has test/, but no train/"),
        (("valid",), "rename valid to val"),
    ],
)
def test_folders_that_look_like_splits_are_no_classes(
    tmp_path: Path, folders: tuple[str, ...], why: str
) -> None:
    for folder in folders:
        fill(tmp_path / folder / "a", 2)
    with pytest.raises(UserError, match=why):
        load("folder", tmp_path)


def test_one_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for folder in ("valid", "broken"):
        fill(tmp_path / folder, 2)
    assert load("folder", tmp_path).classes == ("broken", "valid")


def test_a_class_that_differs_in_case_alone_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "food", 3)
    fill(tmp_path / "val" / "Food", 3)
    with pytest.raises(UserError, match=r"val/Food and train/food differ in small and capital"):
        load("folder", tmp_path)


def test_folders_that_are_no_classes_are_given_no_labels(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "cam1" / "monday", 3)
    fill(tmp_path / "train" / "cam2", 3)
    fill(tmp_path / "train", 3)
    fill(tmp_path / "val" / "cam3", 2)
    splits = load("folder", tmp_path, labels="none")
    assert splits.classes == ()
    assert [len(split) for split in splits[:2]] == [9, 2]
    assert splits.train.labels.unique().tolist() == [UNLABELLED]
    # The order, and with it the trajectory, is that of the same folder with labels.
    (tmp_path / "val" / "cam3").rename(tmp_path / "val" / "cam1")
    assert names(splits.train, tmp_path) == names(load("folder", tmp_path).train, tmp_path)


def test_any_data_set_can_be_given_without_labels() -> None:
    splits = load("digits", "data", labels="none")
    assert (splits.classes, splits.train.labels.unique().tolist()) == ((), [UNLABELLED])
