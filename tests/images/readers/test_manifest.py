"""Manifests: listed files become splits, as a folder's files do, and what is wrong is said."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from manifests import write_manifest
from photographs import fill
from PIL import Image

from simclr_pl import SimCLRViews, UserError
from simclr_pl.commands.pack.check import check_images
from simclr_pl.commands.pack.pack import pack
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.datasets import load
from simclr_pl.images.readers.manifest import read_manifest
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.images.workers.unreadable import Unreadable


def classes_of(folder: Path, images: int = 20) -> list[tuple[str, str]]:
    """Photographs of two classes in folders; their paths and labels in no order."""
    for number, label in enumerate(("cat", "dog")):
        fill(folder / label / "2024", images // 2, 100 * number)
        fill(folder / label, images // 2, 100 * number + 50)
    found = [
        (str(p.relative_to(folder)), p.parts[len(folder.parts)]) for p in folder.rglob("*.jpg")
    ]
    random.Random(0).shuffle(found)
    return found


def files(folder: Path, *names: str) -> None:
    """Files that no decoder has to take."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "train"])
def test_a_manifest_of_a_folders_files_is_the_folder(tmp_path: Path, below: str) -> None:
    rows = classes_of(tmp_path / below)
    root = write_manifest(tmp_path / below / "images.csv", rows, "path,label")
    folder, manifest = load("folder", tmp_path, 3), load("manifest", root, 3)
    assert manifest.classes == folder.classes == ("cat", "dog")
    for name in ("train", "val"):
        one, other = getattr(folder, name), getattr(manifest, name)
        assert list(one.names) == list(other.names)
        assert list(one.paths) == list(other.paths)
        assert one.labels.equal(other.labels)
    assert len(manifest.val) == 4
    pack(str(root), str(tmp_path / "set"), num_workers=0)
    packed = load("packed", tmp_path / "set", 3)
    assert list(packed.val.names or ()) == list(folder.val.names or ())


def test_files_of_several_roots_and_of_absolute_paths(tmp_path: Path) -> None:
    files(tmp_path, "lists/a.png", "one/b.png", "two/c.png", "two/d.jpg")
    (tmp_path / "two" / "link.png").symlink_to(tmp_path / "two" / "c.png")
    listed = ["./a.png", "../one//b.png", str(tmp_path / "two" / "c.png"), "../two/link.png"]
    root = write_manifest(tmp_path / "lists" / "images.csv", [[path] for path in listed])
    train = read_manifest(root).train
    assert isinstance(train, ImageFiles)
    here = {path.resolve() for path in train.paths}
    assert here == {tmp_path / name for name in ("lists/a.png", "one/b.png", "two/c.png")}
    names = {str(name, "ascii") for name in train.names}
    assert names == {"a.png", "../one/b.png", str(tmp_path / "two" / "c.png"), "../two/link.png"}
    assert train.groups is None
    assert (train.labels == UNLABELLED).all()
    part = train.select(torch.tensor([2, 0]))
    assert list(part.names or ()) == [train.names[2], train.names[0]]


def test_splits_and_labels_are_those_of_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files(tmp_path, *(f"{n}.png" for n in range(8)), "z.psd", "notes.txt", "LICENSE")
    rows = [
        ("0.png", "Käfer, groß", "train"), ("1.png", "", ""), ("2.png", "7", ""),
        ("3.png", "7", "test"), ("4.png", "", "test"), ("5.png", "Käfer, groß", "val"),
        ("6.png", "7", "val"), ("7.png", "10", ""), ("z.psd", "none", ""), ("LICENSE", "", ""),
        ("notes.txt", "", ""),
    ]  # fmt: skip
    root = write_manifest(tmp_path / "images.csv", rows, "path,label,split")
    raw = read_manifest(root)
    assert raw.classes == ("10", "7", "Käfer, groß")
    assert raw.val is not None
    assert raw.test is not None
    assert list(raw.train.names or ()) == [b"0.png", b"1.png", b"2.png", b"7.png"]
    assert raw.train.labels.tolist() == [2, UNLABELLED, 1, 0]
    assert (raw.val.labels.tolist(), raw.test.labels.tolist()) == ([2, 1], [1, UNLABELLED])
    assert load("manifest", root).held is None
    assert capsys.readouterr().out == (
        f"{root}: 8 images (train 4, val 2, test 2); left out: 2 of kinds that are not read "
        "(.psd, .txt); 1 without suffix that are no images (LICENSE)\n"
    )
    table = dict(zip(("path", "label", "split"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({k: list(v) for k, v in table.items()}), tmp_path / "images.parquet")
    twin = read_manifest(tmp_path / "images.parquet")
    assert twin.classes == raw.classes
    for name, source in raw.splits.items():
        assert list(twin.splits[name].names or ()) == list(source.names or ())
        assert twin.splits[name].labels.equal(source.labels)


def test_labels_none_reads_no_labels(tmp_path: Path) -> None:
    files(tmp_path, "a.png", "b.png", "c.png", "d.png")
    rows = [("a.png", "x", "train", "g"), ("b.png", "", "", ""), ("c.png", "only here", "test", "")]
    root = write_manifest(tmp_path / "images.csv", rows, "path,label,split,group")
    splits = load("manifest", root, labels="none")
    assert splits.classes == ()
    assert splits.test is not None
    assert (splits.train.labels == UNLABELLED).all()
    assert (splits.test.labels == UNLABELLED).all()


# What is wrong ------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, list[tuple[str, ...]], str]] = {
    "an empty path": (
        "path,label", [("a.png", "x"), ("", "x"), ("", "y")],
        "2 of 3 rows have no path (row 2 behind the header is the first one): give each row its",
    ),
    "a path twice": ("path", [("a.png",), ("b.png",), ("a.png",)], "1 paths are there twice (a.p"),
    "two spellings": (
        "path", [("a.png",), ("d/../a.png",)], "1 paths are there twice (a.png): keep one row a"
    ),
    "missing files": (
        "path", [("a.png",), *((f"no{n}.png",) for n in range(5))],
        "5 of 6 files are missing (no0.png, no1.png, no2.png, ...): paths are absolute, or rel",
    ),
    "a folder": ("path", [("a.png",), ("d",)], "1 paths are no files (folders, perhaps) (d): list"),
    "a file as folder": ("path", [("a.png/b.png",)], "1 of 1 files are missing (a.png/b.png): "),
    "another word for a split": (
        "path,split", [("a.png", "train"), ("b.png", "Validation")],
        "column split has 'Validation', but splits are called train, val and test: did you mean v",
    ),
    "a misspelt split": ("path,split", [("a.png", "tets")], "has 'tets', but splits are called"),
    "no train": (
        "path,split", [("a.png", "val")], "has no image of train: write train, or nothing, into"
    ),
    "no images": (
        "path", [("n.txt",)], "has no image of train (left out: 1 of kinds that are not read (.txt"
    ),
    "a class of val alone": (
        "path,label,split", [("a.png", "x", ""), ("b.png", "y", "val")],
        "1 classes of val have no image in train (y): remove their rows or their labels, or give",
    ),
    "one group": (
        "path,group", [("a.png", "p1"), ("b.png", "p1"), ("d/c.png", "p1")],
        "images.csv: the group p1 (3 images) is so large that 3 of train's 3 images would be held",
    ),
    "a group in two splits": (
        "path,split,group", [("a.png", "", "p1"), ("b.png", "test", "p1"), ("d/c.png", "", "p2")],
        "1 groups are in two splits (p1 in train and test): give all images of a group the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_manifest_is_said(tmp_path: Path, kind: str) -> None:
    header, rows, said = WRONG[kind]
    files(tmp_path, "a.png", "b.png", "d/c.png", "n.txt")
    root = write_manifest(tmp_path / "images.csv", rows, header)
    with pytest.raises(UserError) as refused:
        load("manifest", root)
    assert f"{root}" in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("gone", [1, 2])
def test_a_missing_file_is_left_out_where_bad_images_are(
    tmp_path: Path, gone: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a hundred is as many as may be bad; the list's other faults stay errors."""
    paths = fill(tmp_path / "images", 100)
    root = write_manifest(tmp_path / "images.csv", [[path] for path in paths])
    for path in paths[50 : 50 + gone]:
        path.unlink()
    with pytest.raises(UserError, match=f"{gone} of 100 files are missing"):
        load("manifest", root)
    if gone > 1:
        with pytest.raises(UserError, match="2 of 100 files are missing"):
            load("manifest", root, on_bad_image="skip")
        return
    train: Any = load("manifest", root, on_bad_image="skip").train
    views = SimCLRViews(12)
    (batch,) = train.prepared(views, views, 0).batches([torch.arange(49, 52)], 0, "clean")
    assert batch.index.tolist() == [49, 51]
    assert f"{paths[50]} is left out (No such file or directory)" in capsys.readouterr().out
    again = write_manifest(tmp_path / "twice.csv", [[path] for path in [*paths[51:], paths[60]]])
    with pytest.raises(UserError, match="1 paths are there twice"):
        load("manifest", again, on_bad_image="skip")


def test_bad_images_of_a_manifest_are_counted_over_resumes(tmp_path: Path) -> None:
    fill(tmp_path / "images", 6)
    (tmp_path / "images" / "000.jpg").write_bytes(b"")
    rows = [[path] for path in (tmp_path / "images").glob("*.jpg")]
    root = write_manifest(tmp_path / "lists.csv", rows)
    left_out = tmp_path / "left_out.csv"
    left_out.write_text(f"path,reason\n{tmp_path}/images/001.jpg,x\n/elsewhere/001.jpg,x\n")
    train: Any = load("manifest", root, left_out=left_out, on_bad_image="skip").train
    notes = train.unreadable
    assert isinstance(notes, Unreadable)
    notes.images = 200  # two bad images are not too many of them
    notes.add(tmp_path / "images" / "000.jpg", "it is empty")
    notes.images = 199
    with pytest.raises(UserError, match=f"3 of 199 images of {root} cannot be read, more than 1%"):
        notes.add(tmp_path / "images" / "002.jpg", "it is empty")


def test_pack_lists_the_files_of_a_manifest_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = fill(tmp_path, 3)
    Image.new("RGB", (8, 8)).save(tmp_path / "unlisted.png")
    paths[1].write_bytes(b"")
    root = write_manifest(tmp_path / "images.csv", [[path.name] for path in paths])
    with pytest.raises(UserError, match=rf"1 of 3 images of {root} cannot be read: remove what is"):
        check_images(str(root), num_workers=0)
    assert f"{paths[1]}: it is empty" in capsys.readouterr().out
