"""Images of different sizes in one row of pixels: batches, padding, parts, and files gone bad."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from datamodules import ready
from photographs import fill, photograph
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews, UserError
from simclr_pl.commands.pack.pack import pack
from simclr_pl.core.batch import UNLABELLED, Batch, Cut
from simclr_pl.images.datasets import load
from simclr_pl.images.readers.packed import INDEX, PIXELS
from simclr_pl.images.readers.packed_images import MappedFile, PackedImages

SIZES = [(40, 30), (33, 50), (64, 64), (25, 21), (60, 31), (20, 40)]
"""Width and height."""

SIDE = 16


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [TF.pil_to_tensor(photograph(*size, seed)) for seed, size in enumerate(SIZES)]


@pytest.fixture
def source(images: list[Tensor]) -> PackedImages:
    sizes = torch.tensor([[*image.shape[1:]] for image in images])
    ends = torch.tensor([image.numel() for image in images]).cumsum(0)
    pixels = torch.cat([image.flatten() for image in images])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    return PackedImages(pixels, sizes, starts, torch.arange(len(images)) - 1)


def plan(*batches: list[int]) -> list[Tensor]:
    return [torch.tensor(batch) for batch in batches]


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", get_args(Cut))
def test_images_come_whole_and_padded_to_the_largest_of_the_batch(
    source: PackedImages, images: list[Tensor], cut: Cut
) -> None:
    batches = list(source.batches(plan([3, 0, 1], [5], [2, 4]), 7, cut))
    assert [tuple(batch.images.shape) for batch in batches] == [
        (3, 3, 50, 40),
        (1, 3, 40, 20),
        (2, 3, 64, 64),
    ]
    for batch, places in zip(batches, ([3, 0, 1], [5], [2, 4]), strict=True):
        assert (batch.index.tolist(), batch.epoch) == (places, 7)
        assert batch.labels.tolist() == [place - 1 for place in places]
        assert batch.sizes is not None
        for there, size, place in zip(batch.images, batch.sizes.tolist(), places, strict=True):
            height, width = size
            assert torch.equal(there[:, :height, :width], images[place])
            assert int(there.sum()) == int(images[place].sum())  # nothing but zeros beside it


def test_parts_of_a_split_copy_no_pixels(source: PackedImages, images: list[Tensor]) -> None:
    some = source.select(torch.tensor([4, 1]))
    other = some.relabel(torch.tensor([UNLABELLED, 3]))
    (batch,) = other.batches(plan([1, 0]), 0, "views")
    assert torch.equal(batch.images[0, :, : SIZES[1][1], : SIZES[1][0]], images[1])
    assert (batch.labels.tolist(), batch.index.tolist()) == ([3, UNLABELLED], [1, 0])
    assert other.pixels.data_ptr() == source.pixels.data_ptr()
    assert (len(source), source.labels.tolist()) == (6, [-1, 0, 1, 2, 3, 4])
    assert (some.side, some.channels) == (None, 3)


def test_a_split_batch_keeps_its_sizes(source: PackedImages) -> None:
    (batch,) = source.batches([torch.arange(6)], 0, "views")
    parts = batch.split([1, 3, 2])
    assert batch.sizes is not None
    assert torch.cat([part.sizes for part in parts if part.sizes is not None]).equal(batch.sizes)
    assert [len(part.labels) for part in parts] == [1, 3, 2]


def test_another_device_is_gone_to_once_for_all_parts(source: PackedImages) -> None:
    """The only other device that every machine has holds no data, but moves as a GPU does."""
    meta = torch.device("meta")
    room = source.pixels.nbytes
    assert source.on(meta, room - 1).pixels is source.pixels
    there = source.on(meta, room)
    part = source.select(torch.tensor([2, 0])).relabel(torch.tensor([0, 1]))
    assert part.on(meta, 0).pixels is there.pixels
    assert (there.pixels.device, there.labels.device.type) == (meta, "cpu")
    del there
    assert part.on(meta, room - 1).pixels is part.pixels  # nobody has kept it
    assert source.on(torch.device("cpu"), 0).pixels is source.pixels


@pytest.mark.gpu
def test_pixels_on_a_gpu_make_the_same_batches_there(source: PackedImages) -> None:
    there = source.on(torch.device("cuda"), 1e9)
    here, moved = (next(s.batches(plan([3, 0, 1]), 0, "views")) for s in (source, there))
    assert here.sizes is not None
    assert moved.sizes is not None
    for one, other in zip(here[:3], moved[:3], strict=True):
        assert other.is_cuda
        assert torch.equal(one, other.cpu())
    assert torch.equal(here.sizes, moved.sizes.cpu())
    assert here.images.is_pinned()


# Views --------------------------------------------------------------------------------------------


def made(views: SimCLRViews, batch: Batch) -> list[Tensor]:
    """Everything that is made of a batch's images."""
    return [
        *views(batch.images, batch.index, batch.epoch, batch.sizes),
        views.one(batch.images, batch.index, batch.epoch, batch.sizes),
        views.clean(batch.images, batch.sizes),
    ]


@pytest.mark.parametrize("side", [8, SIDE, 48])
def test_padding_is_never_looked_at(source: PackedImages, side: int) -> None:
    """Not with garbage in it, and not with more of it: the same bits."""
    views = SimCLRViews(side, seed=5)
    (batch,) = source.batches([torch.arange(6)], 2, "views")
    want = made(views, batch)
    assert batch.sizes is not None
    for more in (0, 13):
        shape = (6, 3, batch.images.shape[2] + more, batch.images.shape[3] + 2 * more)
        generator = torch.Generator().manual_seed(more)
        garbage = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        for i, (height, width) in enumerate(batch.sizes.tolist()):
            garbage[i, :, :height, :width] = batch.images[i, :, :height, :width]
        dirty = made(views, batch._replace(images=garbage))
        assert all(torch.equal(a, b) for a, b in zip(want, dirty, strict=True))


def test_an_image_has_the_same_views_in_any_batch(
    source: PackedImages, images: list[Tensor]
) -> None:
    """And those of the image alone, which nothing pads."""
    views = SimCLRViews(SIDE, seed=5)
    (batch,) = source.batches([torch.arange(6)], 1, "views")
    together = made(views, batch)
    for i, image in enumerate(images):
        (alone,) = source.batches([torch.tensor([i])], 1, "views")
        for a, b in zip(together, made(views, alone), strict=True):
            assert torch.equal(a[i], b[0])
        pair = views(image[None], torch.tensor([i]), 1)
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together, pair, strict=False))


def test_the_clean_view_is_a_photographs(images: list[Tensor], source: PackedImages) -> None:
    """The central 0.875 of the shorter side, as of image files."""
    views = SimCLRViews(SIDE, mean=(0.0,) * 3, std=(1.0,) * 3)
    (batch,) = source.batches([torch.arange(6)], 0, "clean")
    clean = views.clean(batch.images, batch.sizes)
    for image, found in zip(images, clean, strict=True):
        height, width = image.shape[1:]
        side = round(0.875 * min(height, width))
        box = (height - side) // 2, (width - side) // 2, side, side
        want = TF.resized_crop(image.float() / 255, *box, [SIDE, SIDE], antialias=True)
        torch.testing.assert_close(found, want, atol=2e-5, rtol=0)


# Packed sets on disk ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for split, count in (("train", 20), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            fill(root / split / name, count, 100 * number + len(split), ".png")
    return root


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(str(folder), str(tmp_path_factory.mktemp("packed") / "set"), num_workers=0)


def test_a_packed_set_has_the_splits_and_defaults_of_its_folder(
    folder: Path, written: Path
) -> None:
    packed, files = (
        ready(dataset="packed", root=str(written)),
        ready(root=str(folder), dataset="folder"),
    )
    for name in ("train", "val", "test"):
        one, other = (getattr(data.splits, name) for data in (packed, files))
        assert torch.equal(one.labels, other.labels)
    for name in ("image_size", "channels", "mean", "std", "num_classes"):
        assert getattr(packed, name) == getattr(files, name)
    assert packed.splits.classes == files.splits.classes == ("cat", "dog")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_views_and_clean_images_are_close_to_those_of_the_folder(
    folder: Path, written: Path, split: str
) -> None:
    """The same pixels, cut by PIL in a worker or by weights on the device."""
    plain = {"image_size": SIDE, "mean": (0.0,) * 3, "std": (1.0,) * 3, "num_workers": 0}
    packed = ready(dataset="packed", root=str(written), **plain)
    files = ready(dataset="folder", root=str(folder), **plain)
    made = []
    for data in (packed, files):
        source = getattr(data.splits, split)
        (batch,) = source.batches([torch.arange(len(source))], 3, "both")
        made.append(data.make_clean(batch, views=True))
    one, other = made
    assert one.views is not None
    assert other.views is not None
    # PIL rounds a crop to whole levels, twice; colour jitter stretches that.
    assert float((one.clean - other.clean).abs().max()) < 1.6 / 255
    for a, b in zip(one.views.views.chunk(2), other.views.views.chunk(2), strict=True):
        assert float((a - b).abs().mean()) < 2 / 255


def test_micro_batches_have_the_views_of_the_batch(written: Path) -> None:
    data = ready(dataset="packed", root=str(written), image_size=SIDE)
    (batch,) = data.splits.train.batches([torch.arange(10)], 0, "views")
    whole = data.make_views(batch)
    parts = [data.make_views(part) for part in batch.split([4, 3, 3])]
    views = zip(*(part.views.chunk(2) for part in parts), strict=True)
    assert torch.equal(torch.cat([torch.cat(rows) for rows in views]), whole.views)


def test_a_holdout_looks_at_the_pixels_of_train(written: Path) -> None:
    splits = load("packed", written)
    assert isinstance(splits.train, PackedImages)
    assert isinstance(splits.val, PackedImages)
    assert isinstance(splits.test, PackedImages)
    assert splits.val.pixels.data_ptr() == splits.train.pixels.data_ptr()
    # No split's pixels hold another's, which would be taken to a GPU with them.
    total = splits.train.pixels.numel() + splits.test.pixels.numel()
    assert total == (written / PIXELS).stat().st_size


def test_the_file_is_not_written_to(written: Path) -> None:
    before = (written / PIXELS).read_bytes()
    splits = load("packed", written)
    assert isinstance(splits.train, PackedImages)
    splits.train.pixels.fill_(7)  # a page of this process's own
    assert (written / PIXELS).read_bytes() == before


def longer(path: Path) -> None:
    with (path / PIXELS).open("ab") as file:
        file.write(b"1")


def shorter(path: Path) -> None:
    pixels = (path / PIXELS).read_bytes()
    (path / PIXELS).write_bytes(pixels[:-1])


def changed(**arrays: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with np.load(path / INDEX) as file:
            found = {name: file[name] for name in file.files}
        kept = {k: v for k, v in {**found, **arrays}.items() if v is not None}
        np.savez(path / INDEX, **kept)

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pixels cut short": (shorter, rf"{PIXELS} has \d+ bytes, but its images have \d+: copy it"),
    "pixels too long": (longer, rf"{PIXELS} has \d+ bytes, but its images have \d+: copy it"),
    "no pixels": (lambda path: (path / PIXELS).unlink(), f"{PIXELS} is missing: copy it again"),
    "no index": (lambda path: (path / INDEX).unlink(), "holds no packed set .*simclr_pl pack DIR"),
    "index cut short": (
        lambda path: (path / INDEX).write_bytes((path / INDEX).read_bytes()[:-30]),
        f"{INDEX} is not a readable .npz file.*: pack the images",
    ),
    "index of text": (
        lambda path: (path / INDEX).write_text("no archive"),
        f"{INDEX} is not a readable .npz file.*: pack the images",
    ),
    "a single array": (
        lambda path: (np.save(path / "array.npy", 1), (path / "array.npy").rename(path / INDEX)),
        f"{INDEX} is not a readable .npz file.*: pack the images",
    ),
    "another's arrays": (
        lambda path: np.savez(path / INDEX, train_images=np.zeros(3)),
        f"{INDEX} is of no packed set",
    ),
    "objects": (
        lambda path: np.savez(path / INDEX, format=np.array([{}])),
        f"{INDEX} is not a readable .npz file.*: pack the images",
    ),
    "another format": (changed(format=np.array(2)), "was packed in format 2, .* reads format 1"),
    "no labels": (changed(labels=None), f"{INDEX} is of no packed set"),
    "too few labels": (changed(labels=np.zeros(3, np.int64)), f"{INDEX} is of no packed set"),
    "no train": (changed(counts=np.array([0, 8, 40])), f"{INDEX} is of no packed set"),
    "fractions": (changed(labels=np.zeros(48)), f"{INDEX} is of no packed set"),
    "labels without a class": (changed(classes=np.array(["cat"])), "labels from 0 to 1"),
}


@pytest.mark.parametrize(("spoil", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_set_that_is_not_whole_is_refused(
    written: Path, tmp_path: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    path = tmp_path / "set"
    shutil.copytree(written, path)
    spoil(path)
    with pytest.raises(UserError, match=sentence) as said:
        load("packed", path)
    assert len(str(said.value).splitlines()) == 1


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=rf"{path.name} holds no packed set"):
            load("packed", path)


def test_a_file_that_is_cut_off_while_it_is_mapped_is_a_sentence(tmp_path: Path) -> None:
    """Reading behind its end, the system ends the process without a word."""
    path = tmp_path / "pixels"
    path.write_bytes(bytes(range(48)) * 2)
    pixels = torch.from_file(str(path), shared=False, size=96, dtype=torch.uint8)
    sizes, starts = torch.full((2, 2), 4), torch.tensor([0, 48])
    images = PackedImages(pixels, sizes, starts, torch.zeros(2).long(), None, MappedFile(path))
    part = images.select(torch.tensor([1, 0]))
    batches = part.batches([torch.arange(2)] * 2, 0, "views")
    next(batches)
    with path.open("r+b") as file:
        file.truncate(50)
    with pytest.raises(UserError, match=r"was cut from 96 to 50 bytes while it was in use: copy"):
        next(batches)
    path.unlink()  # that one stays as long as it is mapped
    assert len(list(part.batches([torch.tensor([1])], 0, "views"))) == 1
