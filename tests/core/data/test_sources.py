"""Images in memory and in files: what is cut of them, by how many processes, and bad files."""

import gc
import io
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from arrays import same_batches
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.batch import UNLABELLED, Cut
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.views.crop import CLEAN_SHARE, centre_boxes
from simclr_pl.images.workers.images import ImageFiles

SIDE = 20
SIZES = [(40, 30), (33, 50), (64, 64), (25, 21), (21, 90), (20, 20), (100, 37), (48, 31)]
CUTS: dict[Cut, int] = {"views": 2, "clean": 1, "both": 3}

with_workers = [
    # Python and torch warn of few cores and of forking beside threads: the machine's business.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]
workers = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=with_workers)])


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth enough for JPEG, with other colours in every corner."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for i, (width, height) in enumerate(SIZES):
        paths.append(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}")
        picture(width, height, i).save(paths[-1])
    return paths


@pytest.fixture
def views() -> SimCLRViews:
    return SimCLRViews(SIDE, seed=7)


def source_of(paths: list[Path], views: SimCLRViews, workers: int = 0) -> ImageFiles:
    return ImageFiles(paths, torch.arange(len(paths)) - 1).prepared(views, views, workers)


def plan(*batches: list[int]) -> list[Tensor]:
    return [torch.tensor(batch) for batch in batches]


def complaint(source: ImageFiles, batches: list[Tensor]) -> str:
    """What reading says is wrong, or nothing."""
    try:
        list(source.batches(batches, 0, "clean"))
    except UserError as error:
        return str(error)
    finally:
        # The error's frames hold the loader's iterator in a cycle. Collected together with that
        # cycle, torch's iterator waits 10 s for its workers, so the cycle goes first.
        if source.workers:
            gc.collect()
    return ""


# Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", get_args(Cut))
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.processes
def test_worker_processes_give_the_bits_of_one_process(
    files: list[Path], views: SimCLRViews, cut: Cut
) -> None:
    alone, helped = source_of(files, views), source_of(files, views, 2)
    epochs = []
    for epoch, batches in enumerate([plan([3, 1, 0], [7, 2], [5]), plan([6, 0], [4, 3, 1])]):
        here = list(alone.batches(batches, epoch, cut))
        assert same_batches(here, list(helped.batches(batches, epoch, cut)))
        epochs.append(here)
    shapes = [tuple(batch.images.shape) for batch in epochs[0]]
    assert shapes == [(n, CUTS[cut], 3, SIDE, SIDE) for n in (3, 2, 1)]
    assert all(batch.images.dtype == torch.uint8 for batch in epochs[0])
    assert [batch.index.tolist() for batch in epochs[1]] == [[6, 0], [4, 3, 1]]
    assert [batch.labels.tolist() for batch in epochs[1]] == [[5, -1], [3, 2, 0]]
    assert [batch.epoch for batch in epochs[1]] == [1, 1]


def test_crops_are_torchvisions_of_the_same_boxes(files: list[Path], views: SimCLRViews) -> None:
    (batch,) = source_of(files, views).batches([torch.arange(len(files))], 4, "both")
    for i, path in enumerate(files):
        image = Image.open(path).convert("RGB")
        index = torch.tensor([i])
        boxes = [views.boxes(views.draw(index, 4, v), image.height, image.width) for v in (0, 1)]
        boxes.append(centre_boxes(image.height, image.width, CLEAN_SHARE))
        for box, crop in zip(boxes, batch.images[i], strict=True):
            want = TF.resized_crop(image, *box[0].tolist(), [SIDE, SIDE], antialias=True)
            assert torch.equal(crop, TF.pil_to_tensor(want))


def test_both_is_views_and_then_clean(files: list[Path], views: SimCLRViews) -> None:
    source, batches = source_of(files, views), plan([0, 5, 2])
    crops = {cut: next(source.batches(batches, 1, cut)).images for cut in CUTS}
    assert torch.equal(crops["both"], torch.cat([crops["views"], crops["clean"]], 1))


def test_crops_do_not_depend_on_the_batch_and_change_with_the_epoch(
    files: list[Path], views: SimCLRViews
) -> None:
    source = source_of(files, views)
    (together,) = source.batches([torch.arange(8)], 0, "views")
    alone = torch.cat(
        [b.images for b in source.batches([torch.tensor([i]) for i in range(8)], 0, "views")]
    )
    assert torch.equal(alone, together.images)
    (later,) = source.batches([torch.arange(8)], 1, "views")
    assert bool((later.images != together.images).flatten(1).any(1).all())
    assert bool((together.images[:, 0] != together.images[:, 1]).flatten(1).any(1).all())


def test_clean_crops_are_the_same_in_every_epoch(files: list[Path], views: SimCLRViews) -> None:
    source = source_of(files, views)
    (first,), (later,) = (source.batches([torch.arange(8)], e, "clean") for e in (0, 9))
    assert torch.equal(first.images, later.images)


@workers
def test_an_epoch_left_in_the_middle_does_not_disturb_the_next(
    files: list[Path], views: SimCLRViews, workers: int
) -> None:
    source = source_of(files, views, workers)
    next(source.batches(plan([0], [1], [2], [3], [4], [5]), 0, "views"))
    batches = plan([6, 7], [3])
    assert same_batches(
        list(source.batches(batches, 1, "views")),
        list(source_of(files, views).batches(batches, 1, "views")),
    )


def test_views_of_files_are_close_to_views_of_the_same_pixels_in_memory(
    files: list[Path], views: SimCLRViews
) -> None:
    """Two ways to the same view: cut by PIL in a worker, or by a matrix on the device."""
    plain = SimCLRViews(SIDE, mean=(0.0,) * 3, std=(1.0,) * 3, seed=7)
    (batch,) = source_of(files, plain).batches([torch.arange(len(files))], 2, "views")
    from_files = plain(batch.images, batch.index, 2)
    for i, path in enumerate(files):
        whole = TF.pil_to_tensor(Image.open(path).convert("RGB"))[None]
        in_memory = plain(whole, torch.tensor([i]), 2)
        for mine, other in zip(from_files, in_memory, strict=True):
            # PIL rounds a crop to whole levels, twice; colour jitter stretches that.
            assert float((mine[i] - other[0]).abs().mean()) < 2 / 255


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "RGBA": lambda image: image.convert("RGBA"),
    "gray": lambda image: image.convert("L"),
    "gray with alpha": lambda image: image.convert("LA"),
    "palette": lambda image: image.convert("P"),
    "black and white": lambda image: image.convert("1"),
}


@pytest.mark.parametrize("convert", MODES.values(), ids=MODES.keys())
def test_images_of_any_mode_become_rgb(
    tmp_path: Path, convert: Callable[[Image.Image], Image.Image]
) -> None:
    image = convert(picture(SIDE, SIDE))
    image.save(tmp_path / "image.png")
    whole = SimCLRViews(SIDE, scale=(1.0, 1.0))
    (batch,) = source_of([tmp_path / "image.png"], whole).batches(plan([0]), 0, "views")
    want = TF.pil_to_tensor(image.convert("RGB"))
    assert torch.equal(batch.images[0, 0], want)
    assert want.unique().numel() > 1


def test_gray_of_sixteen_bits_keeps_its_shades(tmp_path: Path) -> None:
    """PIL's own conversion cuts 16 bits at 255, which leaves a white image."""
    ramp = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "ramp.png")
    whole = SimCLRViews(SIDE, scale=(1.0, 1.0))
    (batch,) = source_of([tmp_path / "ramp.png"], whole).batches(plan([0]), 0, "views")
    want = torch.from_numpy(ramp / 257)
    assert float((batch.images[0, 0] - want).abs().max()) <= 1


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    picture(60, 60).save(buffer, "JPEG")
    return buffer.getvalue()


def tiny_bytes() -> bytes:
    buffer = io.BytesIO()
    picture(3, 3).save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = {
    "truncated": (jpeg_bytes()[:-300], "cannot be decoded"),
    "header only": (jpeg_bytes()[:40], "cannot be decoded"),
    "empty": (b"", "cannot be decoded"),
    "text": (b"this is no image\n" * 20, "cannot be decoded"),
    "too small": (tiny_bytes(), "is 3 x 3 pixels, too small"),
}


@workers
@pytest.mark.parametrize(("content", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named(
    files: list[Path], views: SimCLRViews, content: bytes, sentence: str, workers: int
) -> None:
    files[3].write_bytes(content)
    source = source_of(files, views, workers)
    # A worker's error comes wrapped in its traceback, with the sentence as the last line.
    said = complaint(source, plan([0, 1, 2], [3, 4])).rsplit("UserError: ", 1)[-1].rstrip()
    assert said.startswith(f"{files[3]} {sentence}")
    assert "remove it" in said
    assert len(said.splitlines()) == 1


def test_a_file_removed_meanwhile_is_named(files: list[Path], views: SimCLRViews) -> None:
    files[2].unlink()
    with pytest.raises(UserError, match=r"2\.png cannot be decoded"):
        list(source_of(files, views).batches(plan([2]), 0, "clean"))


def test_a_file_with_absurdly_many_pixels_is_named(files: list[Path], views: SimCLRViews) -> None:
    """A header with a flipped bit is enough."""
    header = bytearray(files[0].read_bytes())
    header[17] ^= 0x80  # of the width, four bytes behind the signature and the chunk's head
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    files[0].write_bytes(header)
    with pytest.raises(UserError, match=r"0\.png is 8388648 x 30 pixels, which is more than max"):
        list(source_of(files, views).batches(plan([0]), 0, "clean"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "ppm"])
def test_whatever_is_wrong_with_a_file_it_is_a_user_error(
    tmp_path: Path, views: SimCLRViews, suffix: str
) -> None:
    """Files cut short or with bytes changed are refused with their name, or decode after all."""
    path = tmp_path / f"image.{suffix}"
    picture(30, 24).save(path)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    source, refused = source_of([path], views), 0
    for trial in range(30):
        bad = bytearray(good)
        if trial % 2:
            bad = bad[: generator.integers(len(bad))]
        else:
            for place in generator.integers(0, min(len(bad), 200), 3):
                bad[place] = generator.integers(256)
        path.write_bytes(bad)
        said = complaint(source, plan([0]))
        refused += bool(said)
        assert not said or str(path) in said
    assert refused > 5


def test_files_have_no_common_side_and_three_channels(files: list[Path]) -> None:
    source = ImageFiles(files, torch.zeros(len(files), dtype=torch.int64))
    assert (len(source), source.side, source.channels) == (8, None, 3)


def test_selected_files_keep_their_labels_and_places_of_their_own(
    files: list[Path], views: SimCLRViews
) -> None:
    source = ImageFiles(files, torch.arange(8)).select(torch.tensor([6, 2]))
    assert list(source.paths) == [files[6], files[2]]
    (batch,) = source.prepared(views, views, 0).batches(plan([1, 0]), 0, "clean")
    assert batch.labels.tolist() == [2, 6]
    assert batch.index.tolist() == [1, 0]
    relabelled = source.relabel(torch.tensor([UNLABELLED, 5]))
    assert list(relabelled.paths) == list(source.paths)
    assert relabelled.labels.tolist() == [UNLABELLED, 5]
    assert source.labels.tolist() == [6, 2]


def test_files_without_views_cannot_be_cut(files: list[Path]) -> None:
    source = ImageFiles(files, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ValueError, match="prepared"):
        next(source.batches(plan([0]), 0, "clean"))


# Memory ----------------------------------------------------------------------------------------


@pytest.fixture
def array() -> Iterator[ArrayImages]:
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 6, 8)
    return ArrayImages(images.contiguous(), torch.arange(10) + 100)


@pytest.mark.parametrize("cut", get_args(Cut))
def test_images_in_memory_come_whole(array: ArrayImages, cut: Cut) -> None:
    batches = list(array.batches(plan([4, 1, 9], [0]), 3, cut))
    assert [batch.index.tolist() for batch in batches] == [[4, 1, 9], [0]]
    for batch in batches:
        assert batch.images.shape[1:] == (3, 6, 8)
        assert batch.images.dtype == torch.uint8
        assert batch.images[:, 0, 0, 0].tolist() == batch.index.tolist()
        assert batch.labels.tolist() == (batch.index + 100).tolist()
        assert batch.epoch == 3


def test_images_in_memory_know_channels_and_shorter_side(array: ArrayImages) -> None:
    assert (len(array), array.channels, array.side) == (10, 3, 6)


def test_selected_images_are_a_split_of_their_own(array: ArrayImages) -> None:
    some = array.select(torch.tensor([7, 3]))
    (batch,) = some.batches(plan([1]), 0, "clean")
    assert (batch.images.unique().tolist(), batch.labels.tolist()) == ([3], [103])
    other = some.relabel(torch.tensor([1, UNLABELLED]))
    assert other.labels.tolist() == [1, UNLABELLED]
    assert torch.equal(other.images, some.images)
    assert some.labels.tolist() == [107, 103]


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (torch.zeros(4, 3, 8, 8), torch.zeros(4), r"uint8 \[N, C, H, W\].*float32"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), torch.zeros(4), r"uint8 \[N, C, H, W\]"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(3), "with 3"),
        (torch.zeros(4, 3, 3, 8, dtype=torch.uint8), torch.zeros(4), "3 x 8 pixels, too small"),
        (torch.zeros(4, 3, 8, 2, dtype=torch.uint8), torch.zeros(4), "8 x 2 pixels, too small"),
    ],
)
def test_unfit_arrays_are_refused(images: Tensor, labels: Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ArrayImages(images, labels)


def test_a_set_goes_to_another_device_once_for_as_long_as_a_loader_has_it(
    array: ArrayImages,
) -> None:
    """The only other device that every machine has holds no data, but moves as a GPU does."""
    meta, room = torch.device("meta"), array.images.nbytes
    assert array.on(meta, room - 1).images is array.images
    there = array.on(meta, room)
    again = array.relabel(torch.zeros(len(array), dtype=torch.int64)).on(meta, 0)
    assert again.images is there.images
    assert (there.images.device, there.labels.device.type) == (meta, "cpu")
    part = array.select(torch.tensor([2, 0]))
    assert part.on(meta, 0).images is part.images  # other pixels
    copied = pickle.loads(pickle.dumps(array))
    assert copied.on(meta, 0).images is copied.images
    del there, again
    assert array.on(meta, 0).images is array.images


def test_groups_go_with_the_images(array: ArrayImages) -> None:
    array.groups, array.group_names = torch.arange(len(array)) // 2 - 1, [b"a", b"b", b"c"]
    some = array.select(torch.tensor([4, 1])).relabel(torch.tensor([7, 8]))
    (batch,) = some.on(torch.device("cpu"), 0).batches(plan([1, 0]), 0, "views")
    assert batch.groups is not None
    assert batch.groups.tolist() == [-1, 1]
    assert list(some.group_names) == [b"a", b"b", b"c"]


@pytest.mark.gpu
def test_images_on_a_gpu_are_gathered_there(array: ArrayImages) -> None:
    there = array.on(torch.device("cuda"), 1e9)
    (batch,) = there.batches(plan([4, 1]), 0, "views")
    assert batch.images.is_cuda
    assert batch.labels.is_cuda
    assert batch.index.is_cuda
    assert batch.images[:, 0, 0, 0].tolist() == [4, 1]
    assert not there.labels.is_cuda
