"""One data set has one fingerprint, and another data set another."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import write_npz
from photographs import fill

from simclr_pl.commands.pack.pack import pack
from simclr_pl.images.datasets import load
from simclr_pl.images.fingerprint import fingerprint


def test_seeds_of_the_holdout_share_a_fingerprint() -> None:
    assert fingerprint(load("digits", "", 0)) == fingerprint(load("digits", "", 1))


CHANGES = {
    "a pixel": ("train_images", lambda a: a[0, 0].__setitem__(0, 255 - a[0, 0, 0])),
    "a label": ("train_labels", lambda a: a.__setitem__(0, 1 - a[0])),
    "a test image": ("test_images", lambda a: a[0, 0].__setitem__(0, 255 - a[0, 0, 0])),
    "a test label": ("test_labels", lambda a: a.__setitem__(0, 1 - a[0])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_arrays_have_another(change: str, tmp_path: Path) -> None:
    arrays = dict(np.load(write_npz(tmp_path / "a.npz", 8, 8, classes=2, test=10)))
    name, apply = CHANGES[change]
    apply(arrays[name])
    np.savez(tmp_path / "b.npz", **arrays)
    one, same, other = (
        fingerprint(load("npz", tmp_path / file)) for file in ("a.npz", "a.npz", "b.npz")
    )
    assert one == same != other


def test_of_files_and_of_what_is_packed(tmp_path: Path) -> None:
    for first, label in ((0, "a"), (12, "b")):
        fill(tmp_path / "one" / "train" / label, 12, first)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (fingerprint(load("folder", tmp_path / name)) for name in ("one", "two"))
    assert one == two  # wherever it lies
    classes = tmp_path / "two" / "train"
    (classes / "a" / "000.jpg").rename(classes / "a" / "x.jpg")
    assert fingerprint(load("folder", tmp_path / "two")) != one
    packed = []
    for name in ("first", "second"):
        pack(str(tmp_path / "one"), str(tmp_path / name), num_workers=0)
        packed.append(fingerprint(load("packed", tmp_path / name)))
    assert packed[0] == packed[1] != one
    splits = load("packed", tmp_path / "first")
    fewer = splits._replace(train=splits.train.select(torch.arange(20)))
    assert fingerprint(fewer) != packed[0]
