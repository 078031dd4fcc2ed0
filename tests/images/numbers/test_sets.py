"""Sets of numbers: ranges, statistics, sources in memory and on disk, and what is refused."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tifffile
import torch
from number_files import write_stored
from PIL import Image

from simclr_pl import ContrastiveDataModule, UserError
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.images.datasets import load
from simclr_pl.images.numbers.sources import MemoryNumbers, NumberFiles
from simclr_pl.images.readers import stored
from simclr_pl.images.readers.items import NumberItems
from simclr_pl.images.readers.stored import StoredNumbers

Array = np.ndarray[Any, Any]


def pixels(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def npz(path: Path, images: Array, **more: Array) -> Path:
    np.savez(path, train_images=images, train_labels=np.arange(len(images)) % 3, **more)
    return path


def module(dataset: str, root: Path, **options: Any) -> ContrastiveDataModule:
    data = ContrastiveDataModule(
        dataset, str(root), batch_size=8, **{"num_workers": 0, "seed": 3, **options}
    )
    data.setup()
    return data


def first_views(data: ContrastiveDataModule, epoch: int = 2) -> torch.Tensor:
    plan = [torch.tensor([5, 1, 7, 2])]
    (batch,) = data.splits.train.batches(plan, epoch, "views", training=True)
    return data.make_views(batch).views


def test_the_same_pixels_of_16_bits_are_the_same_views(tmp_path: Path) -> None:
    images = pixels(40, 16, 16, 3)
    eight = module("npz", npz(tmp_path / "a.npz", images))
    sixteen = module(
        "npz", npz(tmp_path / "b.npz", images.astype(np.uint16) * 257), range=(0, 65535)
    )
    floats = module("npz", npz(tmp_path / "c.npz", images.astype(np.float32)), range=(0, 255))
    assert isinstance(eight.splits.train, ArrayImages)
    for other in (sixteen, floats):
        assert isinstance(other.splits.train, MemoryNumbers)
        assert (other.mean, other.std) == (eight.mean, eight.std)
        assert (first_views(other) - first_views(eight)).abs().max() < 1e-5
        clean = [d.make_clean(next(iter(d.evaluation_loader("val", "clean"))), views=False).clean
                 for d in (eight, other)]  # fmt: skip
        assert (clean[0] - clean[1]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["npy", "hdf5", "zarr"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_arrays_on_disk_are_read_once_where_they_fit(
    tmp_path: Path, kind: str, depth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pixels(40, 16, 16, 5).astype(depth) * (257 if depth == np.uint16 else 1)
    labels = np.arange(len(images)) % 3
    root = write_stored(tmp_path / kind, kind, train_images=images, train_labels=labels)
    given = {"range": (0, 65535)} if depth == np.uint16 else {}
    options = {"jitter": 0.0, "grayscale": 0.0, **given}
    whole = module(kind, root, **options)
    assert isinstance(whole.splits.train, ArrayImages)
    monkeypatch.setattr(stored, "MEMORY_BYTES", 0)
    part = module(kind, root, **options)
    train = part.splits.train
    assert isinstance(train, StoredNumbers)
    assert (train.channels, train.side, part.image_size) == (5, 16, 16)
    assert train.labels.tolist() == whole.splits.train.labels.tolist()
    assert torch.equal(train.numbers(7), whole.splits.train.images[7])
    assert (part.mean, part.std) == (whole.mean, whole.std)
    # Workers cut with Pillow's filter, which agrees with ours to rounding.
    assert (first_views(part) - first_views(whole)).abs().max() < 1e-4


def bands(folder: Path, count: int = 12, channels: int = 5, top: int = 4096) -> Path:
    """A folder of TIFFs in two classes."""
    rng = np.random.default_rng(1)
    for place in range(count):
        there = folder / "ab"[place % 2] / f"{place}.tif"
        there.parent.mkdir(parents=True, exist_ok=True)
        array = rng.integers(0, top, (channels, 24, 20)).astype(np.uint16)
        tifffile.imwrite(there, array, photometric="minisblack", planarconfig="separate")
    return folder


FLAT = {"jitter": 0.0, "grayscale": 0.0, "image_size": 16}


def test_a_folder_of_bands_has_their_statistics(tmp_path: Path) -> None:
    root = bands(tmp_path / "images")
    data = module("folder", root, range=(0, 4095), **FLAT)
    train = data.splits.train
    assert isinstance(train, NumberFiles)
    assert (train.channels, data.range) == (5, (0, 4095))
    assert data.num_classes == 2
    assert first_views(data).shape == (8, 5, 16, 16)
    mean = np.stack([tifffile.imread(path) for path in root.rglob("*.tif")]).mean((0, 2, 3)) / 4095
    np.testing.assert_allclose(data.mean or (), mean, atol=0.02)


def test_pages_may_be_images(tmp_path: Path) -> None:
    root, rng = tmp_path / "images", np.random.default_rng(0)
    root.mkdir()
    for name in "abc":
        with tifffile.TiffWriter(root / f"{name}.tif") as file:
            for _ in range(4):
                file.write(rng.integers(0, 1000, (16, 16)).astype(np.uint16))
    splits = load("folder", root, range=(0, 1000), pages="images")
    train = splits.train
    assert len(train) == 12
    assert list(train.names or ())[:5] == [
        b"a.tif#0",
        b"a.tif#1",
        b"a.tif#2",
        b"a.tif#3",
        b"b.tif#0",
    ]
    assert isinstance(train, NumberFiles)
    expected = tifffile.imread(root / "b.tif", key=1)
    np.testing.assert_array_equal(train.numbers(5)[0].numpy(), expected)
    part = train.select(torch.tensor([5, 2]))
    np.testing.assert_array_equal(part.numbers(0)[0].numpy(), expected)
    assert load("folder", root, range=(0, 1000), pages="channels").train.channels == 4


def test_auto_is_percentiles_of_a_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.arange(40 * 16 * 16, dtype=np.uint16).reshape(40, 16, 16)
    data = module("npz", npz(tmp_path / "a.npz", images), range="auto")
    low, high = data.range or (0, 0)
    every = images[:36]
    assert 0 <= low <= np.percentile(images, 0.5)
    assert np.percentile(every, 99) <= high <= images.max()
    assert f"npz: range [{low:g},{high:g}], percentiles 0.1 and 99.9 of 40 images" in (
        capsys.readouterr().out
    )


def test_a_range_that_clips_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.arange(40 * 16 * 16, dtype=np.uint16).reshape(40, 16, 16)
    file = npz(tmp_path / "a.npz", images)
    module("npz", file, range=(0, 5119.5))
    assert (
        "npz: the range [0,5119.5] clips 50.0% of the numbers in a sample, which go from 0 to"
        in (capsys.readouterr().out)
    )
    module("npz", file, range=(0, 10230))
    assert "clips" not in capsys.readouterr().out


def test_what_lies_beyond_the_range_is_clipped(tmp_path: Path) -> None:
    images = np.full((40, 8, 8), 100, np.uint16)
    images[:, 0, 0], images[:, 1, 1] = 65535, 0
    data = module("npz", npz(tmp_path / "a.npz", images), range=(50, 150), mean=(0.0,), std=(1.0,))
    clean = data.make_clean(next(iter(data.evaluation_loader("val", "clean"))), views=False).clean
    assert clean[:, 0, 0, 0].unique().tolist() == [1.0]
    assert clean[:, 0, 1, 1].unique().tolist() == [0.0]
    assert clean[:, 0, 2, 2].unique().tolist() == [0.5]


REFUSED = {
    r"nothing says which are black and white: give --data.range \[LOW,HIGH\]": {},
    r"data.range is \[5, 5\], but must be two numbers": {"range": (5, 5)},
    r"data.range is \[9, 1\], but must be two numbers": {"range": (9, 1)},
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_range_that_is_missing_or_none_is_a_sentence(tmp_path: Path, said: str) -> None:
    file = npz(tmp_path / "a.npz", pixels(40, 8, 8).astype(np.uint16))
    with pytest.raises(UserError, match=said):
        load("npz", file, **REFUSED[said])


def test_one_number_alone_has_no_percentiles(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", np.full((40, 8, 8), 7, np.uint16))
    with pytest.raises(UserError, match="all numbers of npz's sample are 7"):
        load("npz", file, range="auto")


def test_channels_first_and_numbers_that_are_none_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is \[40, 4, 32, 32\], which looks like \[N, C, H, W\]"):
        load("npz", npz(tmp_path / "a.npz", pixels(40, 4, 32, 32)))
    floats = pixels(40, 8, 8).astype(np.float32)
    floats[3, 4, 5] = np.nan
    with pytest.raises(UserError, match="train_images cannot be used: 1 of its numbers are NaN"):
        load("npz", npz(tmp_path / "b.npz", floats), range=(0, 255))


def test_files_of_numbers_without_a_range_are_named(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for name in range(3):
        np.save(root / f"{name}.npy", pixels(8, 8))
    with pytest.raises(
        UserError, match=r"left out: 3 of numbers \(NumPy\), which are read with --d"
    ):
        load("folder", root)


def test_another_number_of_bands_in_the_middle(tmp_path: Path) -> None:
    root = bands(tmp_path / "images")
    tifffile.imwrite(
        root / "a" / "4.tif", np.zeros((3, 24, 20), np.uint16), photometric="minisblack",
        planarconfig="separate",
    )  # fmt: skip
    data = module("folder", root, range=(0, 4095), **FLAT)
    with pytest.raises(UserError, match=r"4.tif has 3 channels, but the first image has 5"):
        list(data.splits.train.batches([torch.arange(12)], 0, "views", training=True))


def test_packed_images_have_no_range(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.pages is images, but without a range images are rea"
    ):
        load("digits", tmp_path, pages="images")


def test_a_manifest_of_numbers_keeps_names_and_groups(tmp_path: Path) -> None:
    root = bands(tmp_path / "images")
    np.save(root / "a.npy", np.zeros((24, 20, 5), np.uint16))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
    lines = ["path,group", *(f"{name},{'pq'[n % 2]}{n % 4}" for n, name in enumerate(names))]
    (root / "list.csv").write_text("\n".join(lines))
    train = load("manifest", root / "list.csv", range=(0, 4095)).train
    assert isinstance(train, NumberFiles)
    assert [name.decode() for name in train.names or ()] == names
    assert train.groups is not None
    groups = [train.group_names[n].decode() for n in train.groups.tolist()]
    of = {name: line.split(",")[1] for name, line in zip(names, lines[1:], strict=True)}
    assert groups == [of[name.decode()] for name in train.names or ()]


class Items(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Images of numbers, of one size or of several."""

    def __init__(self, images: list[torch.Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.images[place], place % 3


def of(items: Items, **options: Any) -> ContrastiveDataModule:
    data = ContrastiveDataModule(
        items, batch_size=8, range=(0, 65535), num_workers=0, seed=3, image_size=16, **options
    )
    data.setup()
    return data


def test_items_of_a_dataset_may_be_numbers(tmp_path: Path) -> None:
    images = pixels(40, 16, 16, 3).astype(np.uint16) * 257
    stored_ones = module("npz", npz(tmp_path / "a.npz", images), range=(0, 65535))
    same = [torch.from_numpy(image) for image in images.transpose(0, 3, 1, 2).copy()]
    kept = of(Items(same))
    assert isinstance(kept.splits.train, MemoryNumbers)
    assert torch.equal(first_views(kept), first_views(stored_ones))
    read = of(Items([*same[:-1], same[-1][:, :12]]))
    assert isinstance(read.splits.train, NumberItems)
    assert (first_views(read) - first_views(kept)).abs().max() < 0.02  # other statistics
    bad = torch.full((3, 16, 16), float("nan"))
    with pytest.raises(UserError, match=r"item 3 .* or has NaN or infinite numbers: give finite"):
        of(Items([*(image.float() for image in same[:3]), bad]))


def test_sixteen_bits_that_would_be_16_shades_are_refused(tmp_path: Path) -> None:
    """A camera of 12 bits."""
    images = [Image.fromarray(pixels(16, 16, seed=n).astype(np.uint16) * 16) for n in range(12)]
    column = datasets.Dataset.from_dict(
        {"image": images}, datasets.Features(image=datasets.Image())
    )
    column.save_to_disk(tmp_path / "hub")
    said = "images of 16 bits that use the range .* which would be 16 of 256 shades"
    with pytest.raises(UserError, match=rf"{said}: give --data.range auto, which reads all"):
        load(f"hub:{tmp_path / 'hub'}", tmp_path)
    (tmp_path / "folder").mkdir()
    for place, image in enumerate(images):
        image.save(tmp_path / "folder" / f"{place}.png")
    with pytest.raises(UserError, match=rf"{said}: give --data.range auto, which reads all"):
        load("folder", tmp_path / "folder")
    train = load("folder", tmp_path / "folder", range="auto").train
    np.testing.assert_array_equal(train.numbers(0)[0].numpy(), np.asarray(images[0]))
