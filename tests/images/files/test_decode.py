"""Image files: read once, JPEGs decoded no larger than their crops need, and what that changes."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from photographs import exif, photograph, stored
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.batch import Cut
from simclr_pl.core.views.crop import CLEAN_SHARE, centre_boxes
from simclr_pl.images.files.decode import EncodedImage
from simclr_pl.images.workers.crops import CHUNK
from simclr_pl.images.workers.images import ImageFiles

SIDE = 24
SIZES = [
    (500, 375),
    (320, 240),
    (401, 303),
    (199, 350),
    (97, 130),
    (61, 45),
    (640, 251),
    (255, 255),
]
"""From twenty times a view's side to less than two."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for number, (width, height) in enumerate(SIZES):
        paths.append(folder / f"{number}.jpg")
        photograph(width, height, number).save(paths[-1], quality=90)
    return paths


@pytest.fixture
def views() -> SimCLRViews:
    return SimCLRViews(SIDE, seed=3)


def crops(paths: list[Path], views: SimCLRViews, cut: Cut, epoch: int = 0) -> Tensor:
    source = ImageFiles(paths, torch.zeros(len(paths), dtype=torch.int64)).prepared(views, views, 0)
    (batch,) = source.batches([torch.arange(len(paths))], epoch, cut)
    return batch.images


def boxes_of(path: Path, place: int, views: SimCLRViews, epoch: int = 0) -> list[list[int]]:
    """Both views' boxes and the clean one."""
    with Image.open(path) as image:
        width, height = image.size
    index = torch.tensor([place])
    boxes = [views.boxes(views.draw(index, epoch, v), height, width) for v in (0, 1)]
    return torch.cat([*boxes, centre_boxes(height, width, CLEAN_SHARE)]).tolist()


def whole(path: Path, box: list[int]) -> Tensor:
    """The crop of the full-size image."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    return TF.pil_to_tensor(TF.resized_crop(image, *box, [SIDE, SIDE], antialias=True))


def scales(path: Path, boxes: list[list[int]]) -> tuple[int, int]:
    """Of training's decode and of the clean image's."""
    file = EncodedImage(path)
    return file.scale(boxes[:2], SIDE), file.scale(boxes[2:], SIDE)


class Pair(NamedTuple):
    """A crop as it was made, from a decode at 1 / scale, and as the whole image's would be."""

    crop: Tensor
    whole: Tensor
    scale: int


def pairs(paths: list[Path], views: SimCLRViews, epochs: int = 6) -> Iterator[Pair]:
    """Both views' and the clean one of each file."""
    for epoch in range(epochs):
        found = crops(paths, views, "both", epoch)
        for place, path in enumerate(paths):
            boxes = boxes_of(path, place, views, epoch)
            train, clean = scales(path, boxes)
            for box, crop, scale in zip(boxes, found[place], (train, train, clean), strict=True):
                yield Pair(crop, whole(path, box), scale)


def test_no_crop_has_fewer_pixels_than_a_view_unless_the_file_has(files: list[Path]) -> None:
    seen = set()
    for place, path in enumerate(files):
        for epoch in range(20):
            boxes = boxes_of(path, place, SimCLRViews(SIDE), epoch)
            for of_decode, scale in zip((boxes[:2], boxes[2:]), scales(path, boxes), strict=True):
                least = min(side for box in of_decode for side in box[2:])
                assert scale == 1 or least // scale >= SIDE
                assert scale == 8 or least // (2 * scale) < SIDE
                seen.add(scale)
    assert seen == {1, 2, 4, 8}


def test_a_smaller_decode_has_a_pixel_for_so_many(files: list[Path]) -> None:
    for path in files:
        full = np.asarray(EncodedImage(path).rgb()).astype(float)
        for scale in (2, 4, 8):
            small = np.asarray(EncodedImage(path).rgb(scale)).astype(float)
            height, width = (-(-side // scale) for side in full.shape[:2])
            assert small.shape == (height, width, 3)
            # Each is near the mean of the pixels that it stands for; those at the ends may stand
            # for pixels beyond the image.
            rows, columns = full.shape[0] // scale, full.shape[1] // scale
            blocks = full[: rows * scale, : columns * scale]
            means = blocks.reshape(rows, scale, columns, scale, 3).mean((1, 3))
            assert np.abs(small[:rows, :columns] - means).mean() < 2


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_crops_of_a_whole_decode_are_the_bits_of_the_crop_of_the_whole_image(
    files: list[Path], views: SimCLRViews, tmp_path: Path, suffix: str
) -> None:
    """Where nothing was decoded smaller: JPEGs with small crops, and every file that is no JPEG."""
    paths = files
    if suffix == "png":
        paths = [tmp_path / f"{number}.png" for number in range(len(files))]
        for path, jpeg in zip(paths, files, strict=True):
            with Image.open(jpeg) as image:
                image.save(path)
    compared = 0
    for pair in pairs(paths, views):
        if pair.scale == 1:
            assert torch.equal(pair.crop, pair.whole)
            compared += 1
    assert compared == 18 * len(paths) if suffix == "png" else compared > 10


def test_crops_of_a_smaller_decode_are_close_to_those_of_the_whole_image(
    files: list[Path], views: SimCLRViews
) -> None:
    """A level or two of 255: frequencies are cut off by the JPEG's blocks, not by a triangle."""
    differences = []
    for pair in pairs(files, views):
        if pair.scale > 1:
            far = (pair.crop.float() - pair.whole.float()).abs()
            differences.append(float(far.mean()))
            # Nothing is shifted: the edges are as close as the rest.
            assert float(far[:, [0, -1]].mean()) < 8
    assert len(differences) > 60
    assert max(differences) < 4
    assert sum(differences) / len(differences) < 2


def test_a_crop_does_not_depend_on_what_else_is_cut(files: list[Path], views: SimCLRViews) -> None:
    found = {cut: crops(files, views, cut) for cut in get_args(Cut)}
    different = [
        len(set(scales(path, boxes_of(path, place, views)))) > 1 for place, path in enumerate(files)
    ]
    assert any(different)
    assert torch.equal(found["both"], torch.cat([found["views"], found["clean"]], 1))


def test_more_files_than_a_worker_holds_at_a_time_change_no_bit(
    files: list[Path], views: SimCLRViews
) -> None:
    many = files * (2 * CHUNK // len(files) + 1)
    together = crops(many, views, "views")
    source = ImageFiles(many, torch.zeros(len(many), dtype=torch.int64)).prepared(views, views, 0)
    plan = list(torch.arange(len(many)).split(3))
    apart = torch.cat([batch.images for batch in source.batches(plan, 0, "views")])
    assert len(many) > 2 * CHUNK
    assert torch.equal(apart, together)


MODES = {
    "gray": ("L", {}),
    "CMYK": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "no chroma subsampling": ("RGB", {"subsampling": 0}),
}


@pytest.mark.parametrize(("mode", "how"), MODES.values(), ids=MODES.keys())
def test_jpegs_of_any_kind_decode_smaller(
    tmp_path: Path, views: SimCLRViews, mode: str, how: dict[str, Any]
) -> None:
    path = tmp_path / "image.jpg"
    photograph(500, 375).convert(mode).save(path, **how)
    (clean,) = crops([path], views, "clean")[0]
    boxes = boxes_of(path, 0, views)
    assert scales(path, boxes)[1] == 8
    assert float((clean.float() - whole(path, boxes[2]).float()).abs().mean()) < 3


def test_two_pictures_in_one_file_are_read_as_the_first(tmp_path: Path, views: SimCLRViews) -> None:
    """MPO: what some cameras write under the name .jpg."""
    path = tmp_path / "stereo.jpg"
    first, second = photograph(500, 375, 1), photograph(500, 375, 2)
    first.save(path, "MPO", save_all=True, append_images=[second])
    (clean,) = crops([path], views, "clean")[0]
    want = whole(path, boxes_of(path, 0, views)[2])
    assert float((clean.float() - want.float()).abs().mean()) < 3


@pytest.mark.parametrize("cut", get_args(Cut))
def test_a_file_is_read_once(tmp_path: Path, views: SimCLRViews, cut: Cut) -> None:
    """A pipe can be read once: whoever opened it again would wait for ever."""
    content, pipe = tmp_path / "image.jpg", tmp_path / "pipe.jpg"
    for size in ((500, 375), (97, 130)):
        photograph(*size).save(content)
        os.mkfifo(pipe)
        writer = threading.Thread(target=lambda: pipe.write_bytes(content.read_bytes()))
        writer.start()
        piped = crops([pipe], views, cut)
        writer.join(timeout=10)
        assert torch.equal(piped, crops([content], views, cut))
        pipe.unlink()


def test_a_header_that_disagrees_with_its_image_is_said(tmp_path: Path) -> None:
    path = tmp_path / "image.bmp"
    photograph(40, 30).save(path)
    file = EncodedImage(path)
    file.height += 1  # as of an old PIL, which turns some TIFFs only when it decodes them
    with pytest.raises(UserError, match=r"image\.bmp cannot be decoded \(its header says"):
        file.rgb()


@pytest.mark.parametrize("scale", [1, 8])
def test_what_is_broken_behind_the_header_is_said_with_the_name(tmp_path: Path, scale: int) -> None:
    path = tmp_path / "image.jpg"
    photograph(500, 375).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    file = EncodedImage(path)
    with pytest.raises(UserError, match=r"image\.jpg cannot be decoded .*: remove it"):
        file.rgb(scale)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_jpeg_decodes_smaller_and_nothing_is_shifted(
    tmp_path: Path, views: SimCLRViews, orientation: int
) -> None:
    """Of sides that are no multiple of eight, the last pixel of a line is a part of one."""
    image = photograph(497, 371, 5)
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    image.save(plain, quality=95)
    stored(image, orientation).save(turned, quality=95, exif=exif(orientation))
    differences = []
    for epoch in range(6):
        boxes = boxes_of(plain, 0, views, epoch)
        assert scales(plain, boxes) == scales(turned, boxes)
        here, there = (crops([path], views, "both", epoch)[0].float() for path in (plain, turned))
        differences.append(float((here - there).abs().mean()))
    assert max(differences) < 2.5
