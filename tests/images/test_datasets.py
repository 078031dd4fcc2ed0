"""Data sets by name: near ones for a misspelt one, and those that need no preparation."""

from pathlib import Path
from typing import Any

import pytest
from arrays import sentence

from simclr_pl import UserError
from simclr_pl.images.datasets import DATASETS, load, prepare
from simclr_pl.images.readers.own import is_own


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


def test_a_name_with_a_colon_is_a_librarys_or_a_class_path() -> None:
    for name in ("hub:uoft-cs/cifar10", "hub:./set.parquet", "torchvision:Flowers102"):
        assert not is_own(name)
        assert not is_own({"class_path": name, "init_args": {"image": "img"}})
    for name in ("mine:Cells", "hub.Cells", "torchvision.datasets.FakeData", "hub:", "a.b:c"):
        assert is_own(name)
    with pytest.raises(UserError, match="unknown name 'hub:'"):
        load("hub:", "data")
