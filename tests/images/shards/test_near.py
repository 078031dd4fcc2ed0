"""Shards on a disk: where splits come from, and what is no shard or no label."""

import json
from pathlib import Path
from typing import Any

import pytest
from arrays import sentence
from hub_files import named
from shard_files import odd_images, samples, write_tar

from simclr_pl.core.errors import UserError
from simclr_pl.images.datasets import load
from simclr_pl.images.shards.addresses import shards_at

CALLED = {"train": {"train"}, "val": {"val"}, "test": {"test"}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_shards_own_word_names_its_split_however_the_root_is_written(tmp_path: Path) -> None:
    for name in ("train-0", "val-0"):
        write_tar(tmp_path / "test" / f"{name}.tar", samples(odd_images(4)))
    want = {name: [str(tmp_path / "test" / f"{name}-0.tar")] for name in ("train", "val")}
    (tmp_path / "test" / "val-0.tar.index").touch()
    for root in (str(tmp_path / "test"), "test", "test/{train,val}-0.tar", "test/*.tar", "test/*"):
        assert shards_at(root, CALLED) == want


def test_a_folder_called_tar_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "set" / "x.tar").mkdir(parents=True)
    shard = write_tar(tmp_path / "set" / "x.tar" / "0.tar", samples(odd_images(4)))
    assert shards_at("set", CALLED) == {"train": [str(shard)]}


def test_a_hole_in_a_shard_is_no_end(tmp_path: Path) -> None:
    """As downloads leave that reserve their space, and shards that were put behind each other."""
    shard = write_tar(tmp_path / "0.tar", samples(odd_images(12)))
    content = bytearray(shard.read_bytes())
    two = tmp_path / "two.tar"
    two.write_bytes(bytes(content) * 2)
    middle = len(content) // 2 // 512 * 512
    content[middle - 4096 : middle + 4096] = bytes(8192)
    shard.write_bytes(content)
    for root in (shard, two):
        with pytest.raises(UserError, match=r"\.tar is cut off, or no tar file"):
            load("shards", str(root))


def labelled(path: Path, labels: list[Any]) -> str:
    members = [
        (f"{n}.{suffix}", content)
        for n, (image, label) in enumerate(zip(odd_images(len(labels)), labels, strict=True))
        for suffix, content in (("jpg", image), ("json", json.dumps({"label": label}).encode()))
    ]
    return str(write_tar(path, members))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([3, 10, "3", -1], ("3", "10")),
        (["7", "007", "7", "b"], ("007", "7", "b")),
        (["\u00b2", "1", "1", "1"], ("1", "\u00b2")),
        ([10**20, 1, 1, 1], ("1", "1" + "0" * 20)),
    ],
)
def test_labels_that_are_no_numbers_of_64_bits_are_texts(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...]
) -> None:
    root = labelled(tmp_path / "0.tar", labels * 3)
    assert load("shards", root).classes == classes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"image": "json"}, "init_args.image is json, but must be of images"),
        ({"cache_gb": float("nan")}, "cache_gb is nan, but must be 0 or more"),
        ({"cache_gb": -1}, "cache_gb is -1, but must be 0 or more"),
    ],
)
def test_options_out_of_their_range_are_a_sentence(args: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(named("shards", **args), "set")


def test_a_cache_without_bounds_is_one(tmp_path: Path) -> None:
    root = str(write_tar(tmp_path / "0.tar", samples(odd_images(8))))
    assert len(load(named("shards", cache_gb=float("inf")), root).train) == 8


@pytest.mark.parametrize("in_list", [False, True])
def test_a_password_in_an_address_is_refused_and_not_shown(tmp_path: Path, in_list: bool) -> None:
    root = "https://me:s3cret@host.example:81/set/{0..3}.tar"
    if in_list:
        (tmp_path / "all.txt").write_text(f"{root}\n")
        root = str(tmp_path / "all.txt")
    with pytest.raises(UserError) as caught:
        load("shards", root)
    assert "an address of host.example:81 has a password in it" in sentence(caught)
    assert "s3cret" not in str(caught.value)
