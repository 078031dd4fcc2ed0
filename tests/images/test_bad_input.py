"""Bad input: each kind of file cut off or empty, NaN, and channels first, as errors or skipped."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from arrays import sentence
from manifests import write_manifest
from number_files import SUFFIXES, deep, write_numbers, write_stored
from photographs import fill, photograph
from shard_files import odd_images, write_tar

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.data.sources import OnBadImage, Range
from simclr_pl.images.datasets import load
from simclr_pl.images.fingerprint import Contents
from simclr_pl.images.heldout import HeldOut
from simclr_pl.images.readers import stored
from simclr_pl.images.workers.images import WorkerImages

COUNT, BAD = 100, 50
"""One bad image of 100 is as many as may be skipped."""

PHOTOGRAPHS = (".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".jp2")
STORED = ("npy", "hdf5", "zarr")

CALLED = {".tif": "TIFF", ".npy": "NumPy", ".npz": "NumPy", ".h5": "HDF5", ".dcm": "DICOM"}
"""What a suffix says that a file is, where numbers are read."""


def read(
    given: str, root: Path, how: OnBadImage, limits: Range | Literal["auto"] | None
) -> list[int]:
    """Places of the images that come of the bad one and its neighbours."""
    source = load(given, root, on_bad_image=how, range=limits).train
    assert isinstance(source, WorkerImages)
    source.statistics()
    views = SimCLRViews(12, seed=1)
    (batch,) = source.prepared(views, views, 0).batches(
        [torch.arange(BAD - 1, BAD + 2)], 0, "clean"
    )
    return batch.index.tolist()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
@pytest.mark.parametrize(
    ("suffix", "limits"),
    [(s, None) for s in PHOTOGRAPHS] + [(s, (0.0, 4095.0)) for s in SUFFIXES],
)
def test_a_file_that_is_cut_off_or_empty(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    limits: Range | None,
    share: float,
) -> None:
    first = tmp_path / f"000{suffix}"
    if limits is None:
        photograph(31, 30, 1).save(first)
    else:
        write_numbers(first, deep(1, 30, 31, top=4096))
    content = first.read_bytes()
    for place in range(1, COUNT):
        (tmp_path / f"{place:03}{suffix}").write_bytes(content)
    bad = tmp_path / f"{BAD:03}{suffix}"
    bad.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(UserError) as caught:
        read("folder", tmp_path, "error", limits)
    said = sentence(caught)
    assert said.startswith(f"{bad} cannot be ")
    assert said.endswith("remove it, or save it again")
    assert read("folder", tmp_path, "skip", limits) == [BAD - 1, BAD + 1]
    assert f"{bad} is left out (" in capsys.readouterr().out


def write_other(path: Path, what: str) -> None:
    """A file that is something else than its suffix says, or a text."""
    if what == "text":
        path.write_text("<!DOCTYPE html> not found\n" * 20)
        return
    suffix = {"PNG": ".png", "JPEG": ".jpg"}.get(what) or next(
        s for s in CALLED if CALLED[s] == what
    )
    twin = path.with_suffix(suffix)
    if what == "JPEG":
        photograph(31, 30, 1).save(twin)
    else:
        write_numbers(twin, deep(1, 30, 31, top=4096))
    twin.rename(path)


@pytest.mark.parametrize(
    ("suffix", "what"),
    [
        (suffix, what)
        for suffix, called in CALLED.items()
        for what in ("PNG", "JPEG", "text", *dict.fromkeys(CALLED.values()))
        if what != called
    ],
)
def test_a_file_of_numbers_that_is_another_kind_than_its_suffix(
    tmp_path: Path, suffix: str, what: str
) -> None:
    """The sentence says what the file is, in place of a library's advice to load it unsafely."""
    bad = tmp_path / f"{BAD:03}{suffix}"
    write_other(bad, what)
    content = write_numbers(tmp_path / f"000{suffix}", deep(1, 30, 31, top=4096)).read_bytes()
    for place in {*range(1, COUNT)} - {BAD}:
        (tmp_path / f"{place:03}{suffix}").write_bytes(content)

    limits = (0.0, 4095.0)
    with pytest.raises(UserError) as caught:
        read("folder", tmp_path, "error", limits)
    is_what = f"it is {what}, but its name says {CALLED[suffix]}"
    why = f"it is no {CALLED[suffix]} file" if what == "text" else is_what
    assert sentence(caught) == f"{bad} cannot be read ({why}): remove it, or save it again"
    assert read("folder", tmp_path, "skip", limits) == [BAD - 1, BAD + 1]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_photographs_are_what_they_begin_with_whatever_their_suffix(
    tmp_path: Path, suffix: str
) -> None:
    for place in range(COUNT):
        photograph(31, 30, 1).save(tmp_path / f"{place:03}{suffix}", ("PNG", "JPEG")[place % 2])
    assert read("folder", tmp_path, "error", None) == [BAD - 1, BAD, BAD + 1]
    bad = tmp_path / f"{BAD:03}{suffix}"
    bad.write_text("no image")
    with pytest.raises(UserError, match=r"cannot be decoded \(no kind of image that PIL knows\)"):
        read("folder", tmp_path, "error", None)
    assert read("folder", tmp_path, "skip", None) == [BAD - 1, BAD + 1]


@pytest.mark.parametrize("limits", [(0.0, 1.0), "auto"])
@pytest.mark.parametrize("fault", ["nan", "-inf", "5 bands"])
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".npz", ".h5"])
def test_numbers_that_are_not_finite_or_of_other_bands_in_one_file(
    tmp_path: Path, suffix: str, fault: str, limits: Any
) -> None:
    good = np.random.default_rng(0).random((1, 12, 13)).astype(np.float32)
    content = write_numbers(tmp_path / f"000{suffix}", good).read_bytes()
    for place in range(1, COUNT):
        (tmp_path / f"{place:03}{suffix}").write_bytes(content)
    bad = tmp_path / f"{BAD:03}{suffix}"
    spoilt, why = good.copy(), "has 5 channels, but the first image has 1"
    if fault == "5 bands":
        spoilt = spoilt.repeat(5, 0)
    else:
        spoilt[0, 3, 4], why = float(fault), "cannot be read (1 of its numbers are NaN or infinite)"
    write_numbers(bad, spoilt)
    with pytest.raises(UserError) as caught:
        read("folder", tmp_path, "error", limits)
    assert sentence(caught).startswith(f"{bad} {why}")
    assert read("folder", tmp_path, "skip", limits) == [BAD - 1, BAD + 1]


@pytest.fixture
def numbers() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((COUNT, 14, 13, 5)).astype(np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", STORED)
def test_numbers_that_are_not_finite_in_an_array_on_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbers: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    kind: str,
    value: float,
) -> None:
    monkeypatch.setattr(stored, "MEMORY_BYTES", 0)
    numbers[BAD, 0, 0, 0] = value
    root = write_stored(tmp_path / "set", kind, train_images=numbers)
    with pytest.raises(UserError) as caught:
        read(kind, root, "error", (0.0, 1.0))
    said = sentence(caught)
    assert f"train_images[{BAD}] cannot be read (1 of its numbers are NaN or infinite)" in said
    assert read(kind, root, "skip", (0.0, 1.0)) == [BAD - 1, BAD + 1]

    numbers[:] = value
    root = write_stored(tmp_path / "all", kind, train_images=numbers)
    for how in ("error", "skip"):
        with pytest.raises(UserError, match=r"train_images\[0\] cannot be read"):
            read(kind, root, how, (0.0, 1.0))


@pytest.mark.parametrize("kind", ["npz", *STORED])
def test_an_array_in_memory(
    tmp_path: Path,
    numbers: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    numbers[BAD, 0, 0, 0] = np.nan
    root = write_stored(tmp_path / "set", kind, train_images=numbers)
    with pytest.raises(UserError) as caught:
        load(kind, root, range=(0.0, 1.0))
    said = sentence(caught)
    remedy = "replace these numbers, or leave such images out with --data.on_bad_image skip"
    assert f"(first in image {BAD}): {remedy}" in said
    assert read(kind, root, "skip", (0.0, 1.0)) == [BAD - 1, BAD + 1]
    assert f"{root}: train_images[{BAD}] is left out (" in capsys.readouterr().out

    first = write_stored(tmp_path / "first", kind, train_images=np.zeros((9, 4, 32, 32), np.uint8))
    for how in ("error", "skip"):
        with pytest.raises(UserError) as caught:
            load(kind, first, on_bad_image=how)
        said = sentence(caught)
        assert "train_images is [9, 4, 32, 32], which looks like [N, C, H, W]: save it as" in said


@pytest.mark.parametrize(
    ("kind", "lists"),
    [
        ("folder", "pack {root} --check"),
        ("folder of numbers", "stats --data.dataset folder --data.root {root} --data.range auto"),
        ("npz", "stats --data.dataset npz --data.root {root} --data.range auto"),
    ],
)
def test_more_than_one_in_a_hundred_names_the_command_that_lists_all(
    tmp_path: Path,
    numbers: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    kind: str,
    lists: str,
) -> None:
    """`pack --check` decodes 8 bits, and calls each file of numbers a bad one."""
    root, limits = tmp_path / "set", None if kind == "folder" else (0.0, 1.0)
    numbers[BAD - 1 : BAD + 1, 0, 0, 0] = np.nan
    if kind == "npz":
        write_stored(root, kind, train_images=numbers)
    else:
        suffix = ".png" if limits is None else ".npy"
        for place, image in enumerate(numbers):
            path = root / f"{place:03}{suffix}"
            if limits is not None:
                write_numbers(path, image.transpose(2, 0, 1))
                continue
            path.parent.mkdir(exist_ok=True)
            photograph(12, 12, 1).save(path)
            if np.isnan(image).any():
                path.write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 100 images of .*, more than 1%") as caught:
        read(kind.partition(" ")[0], root, "skip", limits)
    assert f"list all with python -m simclr_pl {lists.format(root=root)}" in sentence(caught)


def members(at: int) -> list[tuple[str, bytes]]:
    """A shard's images, of which one is empty."""
    return [(f"{n:03}.png", b"" if n == at else image) for n, image in enumerate(odd_images(COUNT))]


@pytest.mark.parametrize("at", [0, COUNT - 1])
@pytest.mark.parametrize("kind", ["npz", *STORED, "manifest", "shards"])
def test_a_run_may_begin_where_a_bad_image_is_first_or_last(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbers: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    kind: str,
    at: int,
) -> None:
    """The images that a run keeps a hash of are these and some between."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, limits = tmp_path / "set", None
    if kind == "manifest":
        paths = fill(tmp_path / "images", COUNT)
        root = write_manifest(tmp_path / "images.csv", [[path] for path in paths])
        paths[at].unlink()
    elif kind == "shards":
        root = write_tar(root / "0.tar", members(at))
    else:
        numbers[at, 0, 0, 0], limits = np.nan, (0.0, 1.0)
        write_stored(root, kind, train_images=numbers)
    found = []
    for _ in range(2):
        splits = load(kind, root, on_bad_image="skip", range=limits)
        found.append(Contents.of(splits, HeldOut.of(splits, 0)))
    assert found[0] == found[1]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("kind", ["npz", *STORED])
@pytest.mark.parametrize("array", ["train_images", "train_labels"])
def test_a_file_of_arrays_that_is_cut_off(
    tmp_path: Path, kind: str, share: float, array: str
) -> None:
    """Of zarr that is a chunk."""
    images = np.random.default_rng(0).integers(0, 255, (COUNT, 14, 13), dtype=np.uint8)
    labels = np.random.default_rng(0).integers(0, 9, COUNT)
    root = write_stored(tmp_path / "set", kind, train_images=images, train_labels=labels)
    files = [root] if root.is_file() else [*root.rglob(f"{array}*"), *root.glob(f"{array}/c/**/*")]
    cut = max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * share)])
    with pytest.raises(UserError) as caught:
        load(kind, root)
    assert str(root) in sentence(caught)
