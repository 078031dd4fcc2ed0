"""Numbers of hubs and shards, whose images are contents of files."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tifffile
import torch
from noise import pixels
from PIL import Image
from shard_files import write_tar

from simclr_pl import ContrastiveDataModule, UserError
from simclr_pl.images.datasets import load
from simclr_pl.images.numbers.sources import MemoryNumbers
from simclr_pl.images.readers.encoded import EncodedNumbers

Array = np.ndarray[Any, Any]


def module(dataset: Any, root: Path, **options: Any) -> ContrastiveDataModule:
    data = ContrastiveDataModule(
        dataset, str(root), batch_size=8, num_workers=0, seed=3, image_size=16, **options
    )
    data.setup()
    return data


def first_views(data: ContrastiveDataModule) -> torch.Tensor:
    plan = [torch.tensor([5, 1, 7, 2])]
    (batch,) = data.splits.train.batches(plan, 2, "views", training=True)
    return data.make_views(batch).views


def saved(image: Array, suffix: str) -> bytes:
    file = io.BytesIO()
    if suffix == "npy":
        np.save(file, image)
    elif suffix == "tif":
        tifffile.imwrite(file, image)
    else:
        Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def set_of(tmp_path: Path, kind: str, images: list[Array]) -> tuple[Any, Path]:
    """Images as data.dataset and data.root, with labels as `npz` gives them."""
    library, suffix = kind.split()
    contents, labels = (
        [saved(image, suffix) for image in images],
        [i % 3 for i in range(len(images))],
    )
    if library == "hub":
        column = datasets.Dataset.from_dict(
            {"image": [{"bytes": c, "path": None} for c in contents], "label": labels},
            datasets.Features(image=datasets.Image(), label=datasets.Value("int64")),
        )
        column.save_to_disk(tmp_path / "hub")
        return f"hub:{tmp_path / 'hub'}", tmp_path
    members = [
        member
        for i, content in enumerate(contents)
        for member in ((f"{i:03}.{suffix}", content), (f"{i:03}.cls", b"%d" % labels[i]))
    ]
    write_tar(tmp_path / "set" / "0.tar", members)
    named = {"class_path": "shards", "init_args": {"image": suffix}}
    return named, tmp_path / "set"


@pytest.mark.parametrize("kind", ["hub png", "hub tif", "shards png", "shards tif", "shards npy"])
def test_sixteen_bits_of_hubs_and_shards_are_read_whole(tmp_path: Path, kind: str) -> None:
    bands = () if kind.endswith("png") else (3,)
    images = pixels(40, 16, 16, *bands).astype(np.uint16) * 257
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(40) % 3)
    want = module("npz", tmp_path / "a.npz", range=(0, 65535))
    kept = module(*set_of(tmp_path / "one", kind, list(images)), range=(0, 65535))
    assert isinstance(kept.splits.train, MemoryNumbers)
    assert torch.equal(first_views(kept), first_views(want))
    sizes = [*images[:-1], images[-1][:, :12]]
    read = module(*set_of(tmp_path / "two", kind, sizes), range=(0, 65535))
    assert isinstance(read.splits.train, EncodedNumbers)
    assert (first_views(read) - first_views(kept)).abs().max() < 0.02  # other statistics
    for place, image in enumerate(sizes):
        shown = image if bands else image[..., None]
        got = read.splits.train.numbers(place)
        np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), shown)


def test_what_numbers_of_hubs_and_shards_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    images = list(pixels(12, 16, 16).astype(np.uint16))
    given, root = set_of(tmp_path / "npy", "shards npy", images)
    with pytest.raises(UserError, match=r"such files hold numbers: give --data.range \[LOW,HIGH\]"):
        load(given, root)
    with pytest.raises(
        UserError, match=r"as --data.dataset.image \(npy and the like need a --data.range"
    ):
        load("shards", root)
    with pytest.raises(UserError, match=r"channels is for images of 8 bits, .* leave channels out"):
        load({"class_path": "shards", "init_args": {"channels": 3}}, root, range="auto")
    with pytest.raises(UserError, match="save each page as an item"):
        load(given, root, range="auto", pages="images")
    pages = [np.stack([image] * 5) for image in images]
    given, root = set_of(tmp_path / "tif", "shards tif", pages)
    with pytest.raises(UserError, match=r"it has 5 pages: give --data.pages channels"):
        load(given, root, range="auto")
    assert load(given, root, range="auto", pages="channels").train.channels == 5
    given, root = set_of(tmp_path / "bad", "shards npy", [np.full((16, 16), np.nan)] * 12)
    with pytest.raises(UserError, match=r"0.tar: 000.npy cannot be read \(256 of its numbers"):
        load(given, root, range="auto")
