"""`data.dataset shards`: WebDataset's tar files on a disk."""

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arrays import array, sentence
from hub_files import named, png
from noise import pixels
from shard_files import odd_images, samples, write_shards, write_tar

from simclr_pl.core.data.sources import Splits
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.readers.shards import ShardImages


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(root: Path | str, given: Any = "shards", **options: Any) -> Splits:
    prepare(given, root)
    return load(given, root, **options)


# What is read -------------------------------------------------------------------------------------


def test_images_and_labels_come_as_they_were_written(tmp_path: Path) -> None:
    images = pixels(40, 8, 9, 3)
    root = write_shards(tmp_path / "set", [png(image) for image in images])
    splits = read(root)
    assert array(splits.train).images.equal(torch.from_numpy(images).permute(0, 3, 1, 2))
    labels = splits.train.labels.clone()
    assert splits.held is not None
    labels[splits.held] = splits.val.labels
    assert labels.tolist() == [i % 4 for i in range(40)]
    assert splits.classes == ("0", "1", "2", "3")


def both(tmp_path: Path) -> tuple[Splits, Splits]:
    """The same files as a folder and as shards."""
    images = odd_images()
    for i, image in enumerate(images):
        path = tmp_path / "folder" / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    files = sorted((tmp_path / "folder").rglob("*.png"))
    for number, some in enumerate((files[:7], files[7:20], files[20:])):
        members = [
            member
            for file in some
            for member in (
                (f"{file.parent.name}/{file.name}", file.read_bytes()),
                (
                    f"{file.parent.name}/{file.stem}.json",
                    json.dumps({"label": file.parent.name}).encode(),
                ),
            )
        ]
        write_tar(tmp_path / "shards" / f"{number}.tar", members)
    return load("folder", tmp_path / "folder"), read(tmp_path / "shards")


def test_a_folder_of_the_same_files_has_the_same_names_and_classes(tmp_path: Path) -> None:
    folder, splits = both(tmp_path)
    assert isinstance(splits.train, ShardImages)
    for name in ("train", "val"):
        one, two = getattr(folder, name), getattr(splits, name)
        assert list(one.names) == list(two.names)
        assert one.labels.equal(two.labels)
    assert folder.classes == splits.classes == ("a", "b")


def test_splits_patterns_and_lists(tmp_path: Path) -> None:
    images = odd_images(24)
    for i, name in enumerate(["train/0", "train/1", "val/0", "test/0"]):
        write_tar(tmp_path / f"{name}.tar", samples(images[i * 6 : i * 6 + 6], i * 6))
    splits = read(tmp_path)
    assert splits.test is not None
    assert [len(splits.train), len(splits.val), len(splits.test)] == [12, 6, 6]
    assert len(read(f"{tmp_path}/train/{{0..1}}.tar").train) == 12
    assert len(read(f"{tmp_path}/*/0.tar").train) == 6
    (tmp_path / "list.txt").write_text("# mine\ntrain/{0,1}.tar\n\nval/0.tar\n")
    splits = read(tmp_path / "list.txt")
    assert [len(splits.train), len(splits.val)] == [12, 6]


def test_keys_that_begin_anew_in_each_shard_are_told_apart(tmp_path: Path) -> None:
    images = odd_images(8)
    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", samples(images[i * 4 : i * 4 + 4]))
    assert list(read(tmp_path).train.names or ())[::4] == [b"0/000000.png", b"1/000000.png"]


def test_an_image_of_several_is_chosen(tmp_path: Path) -> None:
    two = odd_images(2)
    members = [
        (f"{i}.{s}.png", image) for i in range(4) for s, image in zip("ab", two, strict=True)
    ]
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match="several images"):
        read(tmp_path)
    source = read(tmp_path, named("shards", image="b.png")).train
    assert array(source).images.shape == (4, 3, 13, 12)


# The index ----------------------------------------------------------------------------------------


def test_an_index_is_written_once_and_anew_for_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shards(tmp_path / "set", odd_images())
    first = read(root).train
    indexes = sorted(path.name for path in root.glob("*.index"))
    assert indexes == ["0000.tar.index", "0001.tar.index", "0002.tar.index"]
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)
        assert list(read(root).train.names or ()) == list(first.names or ())
    (root / "0000.tar.index").write_bytes(b"PK\3\4 broken")
    write_tar(root / "0001.tar", samples(odd_images(3), 16))
    assert len(read(root).train) == 16 + 3 + 8
    with pytest.raises(UserError, match="has changed since its index was read"):
        first.content(20)


def test_a_source_is_small_for_its_workers(tmp_path: Path) -> None:
    source = read(write_shards(tmp_path / "set", odd_images(400), 200)).train
    assert len(pickle.dumps(source)) < 400 * 8 * 7 + 10_000


# Bad input ----------------------------------------------------------------------------------------


def good(path: Path) -> bytes:
    return write_tar(path, samples(odd_images(4))).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[:3000], "is cut off"),
        (lambda content: content[:1024], "is cut off"),
        (lambda content: content[: 512 * 4], "is cut off"),
        (lambda content: np.random.default_rng(0).bytes(5000), "no tar file"),
        (lambda content: content[:2048] + b"x" * 2048 + content[4096:], "is cut off"),
        (lambda content: b"\x1f\x8b" + content, "is compressed"),
    ],
)
def test_a_broken_shard_is_a_sentence(tmp_path: Path, spoil: Any, said: str) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(spoil(good(path)))
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path)
    assert "0.tar" in sentence(caught)
    assert not list(tmp_path.glob("*.index"))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.txt", b"x")], "sample a has no image, but .txt"),
        ([("a.png", b"x"), ("a.png", b"x")], "a.png twice"),
        ([("a.png", b"x"), ("b.png", b"x"), ("a.png", b"x")], "sample a is there twice"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "has 'cat' in .cls, but no whole number"),
        ([("a.png", b"x"), ("a.json", b"{")], "a .json that cannot be read"),
        ([("a.png", b"x"), ("a.json", b'{"label": [1]}')], "whole number or a text"),
        ([("readme", b"x")], "has no sample"),
    ],
)
def test_a_wrong_member_is_a_sentence(
    tmp_path: Path, members: list[tuple[str, bytes]], said: str
) -> None:
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert said in sentence(caught)


def test_places_without_shards_and_wrong_arguments_are_sentences(tmp_path: Path) -> None:
    good(tmp_path / "set" / "val-0.tar")
    good(tmp_path / "set" / "test-0.tar")
    good(tmp_path / "one.tar.gz")
    for root, said in (
        (tmp_path / "nowhere", "there is no shard"),
        (tmp_path / "nowhere-{0..3}.tar", "there is no shard"),
        (tmp_path / "set", "none of train"),
        (tmp_path / "one.tar.gz", "is compressed"),
        ("nowhere://host/0.tar", "no addresses that begin nowhere://"),
        ("s3://host/0.tar", "simclr_pl[s3]"),
    ):
        with pytest.raises(UserError) as caught:
            read(root)
        assert said in sentence(caught)
    with pytest.raises(UserError, match="takes no argument 'cash_gb'"):
        read(tmp_path / "set", named("shards", cash_gb=1))
    with pytest.raises(UserError, match="must be 0 or more"):
        read(tmp_path / "set", named("shards", cache_gb=-1))


def test_an_empty_image_is_a_bad_image(tmp_path: Path) -> None:
    images = [*odd_images(3), b""]
    write_tar(tmp_path / "0.tar", samples(images))
    views = SimCLRViews(8)
    source = read(tmp_path).train.prepared(views, views, 0)
    with pytest.raises(UserError, match=r"0.tar: 000003.png is empty"):
        list(source.batches([torch.arange(4)], 0, "views"))


def test_bad_images_are_left_out_and_too_many_end_the_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", samples([*odd_images(240), b"broken", b""]))
    file, views = tmp_path / "left_out.csv", SimCLRViews(8)
    source = read(tmp_path, on_bad_image="skip", left_out=file).train.prepared(views, views, 0)
    (batch,) = source.batches([torch.arange(238, 242)], 0, "clean")
    assert batch.index.tolist() == [238, 239]
    assert [f"{i:06}.png" in file.read_text() for i in (239, 240, 241)] == [False, True, True]
    file.write_text(file.read_text() + "shards /another/process.tar: one.png,broken\n")
    source = read(tmp_path, on_bad_image="skip", left_out=file).train.prepared(views, views, 0)
    with pytest.raises(UserError, match="3 of 242 images of shards cannot be read"):
        list(source.batches([torch.arange(238, 242)], 0, "clean"))
