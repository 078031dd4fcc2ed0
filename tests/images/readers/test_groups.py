"""Groups that readers find: in arrays of files, in arrays from Python, in a packed manifest."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr
from arrays import Arrays, sentence
from manifests import write_manifest
from noise import pixels
from PIL import Image

from simclr_pl import UserError
from simclr_pl.commands.pack.pack import pack
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.images.datasets import load
from simclr_pl.images.readers import stored

PATIENTS = [*[f"p{n}" for n in range(20) for _ in range(3)], "", ""]
"""Twenty of three images, and two images of nobody."""


def written(root: Path, kind: str, arrays: Arrays) -> Path:
    if kind == "npz":
        np.savez(root.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
        return root.with_suffix(".npz")
    if kind == "npy":
        root.mkdir()
        for name, array in arrays.items():
            np.save(root / f"{name}.npy", array)
    elif kind == "hdf5":
        with h5py.File(root, "w") as file:
            for name, array in arrays.items():  # it knows no fixed width of unicode
                file[name] = array.astype(object) if array.dtype.kind == "U" else array
    else:
        group = zarr.open_group(root, mode="w")
        for name, array in arrays.items():
            texts = array.astype(np.dtypes.StringDType()) if array.dtype.kind == "U" else array
            group.create_array(name, data=texts)
    return root


def check(splits: Any, names: list[str]) -> None:
    """Whether train has the groups of these names, and val whole ones of them."""
    train, val = splits.train, splits.val
    found = [str(train.group_names[g], "ascii") if g >= 0 else "" for g in train.groups.tolist()]
    assert found == names
    assert val.groups.equal(train.groups[splits.held])
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[splits.held] = False
    assert not set(val.groups.tolist()) & set(train.groups[rest].tolist()) - {-1}
    assert 6 <= len(val) <= 8
    if not isinstance(train, stored.StoredNumbers):  # workers read those
        (batch,) = train.batches([torch.tensor([61, 4])], 0, "views")
        assert batch.groups.tolist() == [-1, train.groups[4]]


@pytest.mark.parametrize("kind", ["npz", "npy", "hdf5", "zarr"])
@pytest.mark.parametrize("numbered", [False, True])
def test_arrays_of_files_have_groups(
    tmp_path: Path, kind: str, numbered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.array([int(name[1:] or -1) if name else -1 for name in PATIENTS])
    groups = numbers[:, None] if numbered else np.array(PATIENTS)
    arrays = {"train_images": pixels(62, 8, 8), "train_groups": groups}
    root = written(tmp_path / "set", kind, {**arrays, "train_labels": np.arange(62) % 2})
    names = [name[1:] for name in PATIENTS] if numbered else PATIENTS
    check(load(kind, root), names)
    if kind != "npz":
        monkeypatch.setattr(stored, "MEMORY_BYTES", 0)  # where they do not fit
    check(load(kind, root, range=(0, 255)), names)


def test_arrays_from_python_have_groups() -> None:
    images, labels = torch.from_numpy(pixels(62, 1, 8, 8)), np.arange(62) % 2
    check(load((images, labels, PATIENTS), ""), PATIENTS)
    given = {"train": (images, labels, PATIENTS), "test": (images, labels)}
    data = ContrastiveDataModule(given, batch_size=8, labels="none")
    data.setup()
    test: Any = data.splits.test
    assert set(test.groups.tolist()) == {-1}
    items = [(images[n, 0].byte()[None], n) for n in range(3)]
    assert len(load({"train": items, "val": items}, "").train) == 3  # three items, no groups


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (np.ones(62), "train_groups is float64 [62], but must be texts or whole numbers [62]"),
        (np.ones(61, np.int64), "train_groups is int64 [61], but must be texts or whole numbers"),
        (np.array(["q"] * 62), "1 groups are in two splits (q in train and test)"),
    ],
)
def test_groups_that_are_none_are_refused(
    tmp_path: Path, groups: np.ndarray[Any, Any], said: str
) -> None:
    arrays = {"train_images": pixels(62, 8, 8), "test_images": pixels(2, 8, 8)}
    more = {"train_groups": groups, "test_groups": np.array(["q", ""])}
    with pytest.raises(UserError) as refused:
        load("npz", written(tmp_path / "set", "npz", {**arrays, **more}))
    assert said in sentence(refused)


def test_a_packed_manifest_keeps_its_groups_and_its_validation_split(tmp_path: Path) -> None:
    rows = []
    for number, name in enumerate(PATIENTS):
        path = tmp_path / f"{number:02}.png"
        Image.fromarray(pixels(8, 8, 3, seed=number)).save(path)
        rows.append([path.name, f"c{number % 2}", name])
    manifest = write_manifest(tmp_path / "images.csv", rows, "path,label,group")
    pack(str(manifest), str(tmp_path / "packed"), num_workers=0)
    listed, packed = load("manifest", manifest), load("packed", tmp_path / "packed")
    check(packed, PATIENTS)
    assert list(packed.val.names or ()) == list(listed.val.names or ())
