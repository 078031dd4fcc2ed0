"""Image files: read once, JPEGs decoded no larger than their crops need, and what that changes."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.batch import Cut
from simclr_pl.core.views.crop import CLEAN_SHARE, centre_boxes
from simclr_pl.images.files.decode import EncodedImage, crops_of
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


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_shades(tmp_path: Path, suffix: str) -> None:
    """PIL has those of a PGM as numbers of 32 bits."""
    shades = np.random.default_rng(0).integers(0, 2**16, (6, 5), np.uint16)
    path = tmp_path / f"image.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 5 6 65535\n" + shades.astype(">u2").tobytes())
    else:
        Image.fromarray(shades).save(path)
    found = np.asarray(EncodedImage(path).rgb())
    assert (found == (shades >> 8).astype(np.uint8)[..., None]).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"<html>not found</html>", "no kind of image that PIL knows"),
        (np.ones((6, 5), np.float32), "32-bit numbers without a range; 8 and 16 bits have one"),
        (np.ones((6, 5), np.int32), "32-bit numbers without a range; 8 and 16 bits have one"),
    ],
)
def test_what_is_no_picture_is_said(tmp_path: Path, content: Any, why: str) -> None:
    path = tmp_path / "image.tif"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(UserError) as caught:
        EncodedImage(path).rgb()
    assert str(caught.value) == f"{path} cannot be decoded ({why}): remove it, or save it again"


# What a picture is --------------------------------------------------------------------------------

TOP = (4, 4, 24, 12)
"""Of a picture of 40 x 30 pixels, the part that is red; the rest is blue."""


def marked(width: int = 40, height: int = 30) -> Image.Image:
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", TOP)
    return image


def stored(image: Image.Image, orientation: int) -> Image.Image:
    """The image as a camera stores it that was held so."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # values of Image.Transpose
    if orientation == 1:
        return image
    return image.transpose(Image.Transpose(back[orientation]))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = orientation
    return found


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_the_camera_was_held(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"image.{suffix}"
    how = {"lossless": True} if suffix == "webp" else {"quality": 100}
    stored(marked(), orientation).save(path, exif=exif(orientation), **how)
    file = EncodedImage(path)
    assert (file.width, file.height) == (40, 30)
    got = np.asarray(file.rgb()).astype(int)
    assert np.abs(got - np.asarray(marked())).mean() < (0.1 if suffix in ("png", "tif") else 6)


def test_orientation_behind_the_pixels_and_in_xmp_counts(tmp_path: Path) -> None:
    """exiftool may write it last; editors write it as XMP."""
    stored(marked(), 6).save(tmp_path / "late.png", exif=exif(6))
    whole = (tmp_path / "late.png").read_bytes()
    at = whole.index(b"eXIf") - 4
    length = 12 + int.from_bytes(whole[at : at + 4], "big")
    end = whole.index(b"IEND") - 4
    late = whole[:at] + whole[at + length : end] + whole[at : at + length] + whole[end:]
    (tmp_path / "late.png").write_bytes(late)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored(marked(), 6).save(tmp_path / "xmp.jpg", xmp=xmp)
    for name in ("late.png", "xmp.jpg"):
        file = EncodedImage(tmp_path / name)
        assert (file.width, file.height) == (40, 30)
        assert file.rgb().size == (40, 30)


def test_broken_exif_breaks_no_picture(tmp_path: Path) -> None:
    marked().save(tmp_path / "image.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert EncodedImage(tmp_path / "image.jpg").rgb().size == (40, 30)


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


TRANSPARENT = {
    "RGBA": ("RGBA", "png"),
    "LA": ("LA", "png"),
    "palette": ("P", "png"),
    "GIF": ("RGBA", "gif"),
    "WebP": ("RGBA", "webp"),
    "TIFF": ("RGBA", "tif"),
}


@pytest.mark.parametrize(("mode", "suffix"), TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str, suffix: str) -> None:
    """A black shape on nothing would become all black."""
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), TOP)
    path = tmp_path / f"image.{suffix}"
    how = {"lossless": True} if suffix == "webp" else {}
    image.convert(mode).save(path, **how)
    want = Image.new("RGB", (40, 30), "white")
    want.paste("black", TOP)
    assert (np.asarray(EncodedImage(path).rgb()) == np.asarray(want)).all()


def test_an_alpha_channel_that_hides_nothing_changes_no_bit(tmp_path: Path) -> None:
    image = photograph(40, 30)
    image.save(tmp_path / "rgb.png")
    image.convert("RGBA").save(tmp_path / "rgba.png")
    found = [np.asarray(EncodedImage(tmp_path / name).rgb()) for name in ("rgb.png", "rgba.png")]
    assert (found[0] == found[1]).all()
    assert (found[0] == np.asarray(image)).all()


def tiff(path: Path, bands: int, *, photometric: int, bits: int = 8, extra: int | None = 0) -> None:
    """A TIFF of 6 x 5 pixels, as instruments write it."""
    colours = 3 if photometric == 2 else 1
    pixels = bytes(6 * 5 * bands * -(-bits // 8))
    tags = [
        (256, 4, [6]), (257, 4, [5]), (258, 3, [bits] * bands), (259, 3, [1]),
        (262, 3, [photometric]), (273, 4, [8]), (277, 3, [bands]), (278, 4, [5]),
        (279, 4, [len(pixels)]),
    ]  # fmt: skip
    if bands > colours and extra is not None:
        tags.append((338, 3, [extra] * (bands - colours)))
    entries, behind, start = b"", b"", 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for number, kind, values in tags:
        packed = b"".join(value.to_bytes(2 if kind == 3 else 4, "little") for value in values)
        where = packed.ljust(4, b"\0")
        if len(packed) > 4:
            where = (start + len(behind)).to_bytes(4, "little")
            behind += packed
        head = (number.to_bytes(2, "little"), kind.to_bytes(2, "little"))
        entries += b"".join((*head, len(values).to_bytes(4, "little"), where))
    path.write_bytes(
        b"II*\0" + (8 + len(pixels)).to_bytes(4, "little") + pixels
        + len(tags).to_bytes(2, "little") + entries + bytes(4) + behind
    )  # fmt: skip


BANDS = {
    "4, RGB": ({"bands": 4, "photometric": 2}, "it has 4 bands, of which only 3 say"),
    "4, RGB, unmarked": ({"bands": 4, "photometric": 2, "extra": None}, "it has 4 bands"),
    "6, RGB": ({"bands": 6, "photometric": 2}, "it has 6 bands, of which only 3 say"),
    "2, gray": ({"bands": 2, "photometric": 1}, "it has 2 bands, of which only 1 say"),
    "4, gray": ({"bands": 4, "photometric": 1}, "it is a TIFF of 4 bands of 8 bits"),
    "5, gray": ({"bands": 5, "photometric": 1}, "it is a TIFF of 5 bands of 8 bits"),
    "16 bits": ({"bands": 4, "photometric": 2, "bits": 16}, "it has 4 bands"),
}


@pytest.mark.parametrize(("how", "why"), BANDS.values(), ids=BANDS)
def test_bands_that_would_be_lost_are_said(tmp_path: Path, how: dict[str, Any], why: str) -> None:
    tiff(tmp_path / "image.tif", **how)
    with pytest.raises(UserError, match=rf"image\.tif cannot be decoded \({why}"):
        EncodedImage(tmp_path / "image.tif")


def test_a_tiff_with_an_alpha_channel_is_read(tmp_path: Path) -> None:
    tiff(tmp_path / "image.tif", 4, photometric=2, extra=2)
    assert EncodedImage(tmp_path / "image.tif").rgb().getpixel((0, 0)) == (255, 255, 255)


def test_pages_that_would_be_lost_are_said(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    marked().save(path, save_all=True, append_images=[marked(), marked()])
    with pytest.raises(UserError, match=r"it has 3 pages: save each page that you want"):
        EncodedImage(path)


def test_a_page_with_a_smaller_copy_is_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    small = marked(20, 20)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    marked().save(path, save_all=True, append_images=[small])
    file = EncodedImage(path)
    assert (file.width, file.height) == (40, 30)
    assert (np.asarray(file.rgb()) == np.asarray(marked())).all()


def test_twelve_bits_that_say_so_keep_their_shades(tmp_path: Path) -> None:
    """PIL has them in numbers of 16: none is above 4095."""
    path = tmp_path / "image.tif"
    shades = np.arange(24, dtype=np.uint16).reshape(4, 6) * 178
    pairs = shades.reshape(-1, 2)
    three = [(a >> 4, (a & 15) << 4 | b >> 8, b & 255) for a, b in pairs.tolist()]
    tiff(path, 1, photometric=1, bits=12)
    whole = bytearray(path.read_bytes())
    # Six pixels of 12 bits are nine bytes: of 4 lines 36, and the fifth is black.
    whole[8 : 8 + 36] = bytes(byte for triple in three for byte in triple)
    path.write_bytes(whole)
    found = np.asarray(EncodedImage(path).rgb())[:4, :, 0]
    assert (found == shades >> 4).all()


def test_white_that_is_zero_is_white(tmp_path: Path) -> None:
    """PIL turns 8 bits round, and leaves 16 as they are."""
    for bits in (8, 16):
        tiff(tmp_path / "image.tif", 1, photometric=0, bits=bits)
        assert EncodedImage(tmp_path / "image.tif").rgb().getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("largest", "fits"), [(40 * 30, True), (40 * 30 - 1, False)])
def test_images_of_more_pixels_than_allowed_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, fits: bool
) -> None:
    """PIL only warns up to twice its limit, and refuses above it whatever is asked for."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "image.png"
    marked().save(path)
    if fits:
        file = EncodedImage(path, largest)
        out = torch.empty(1, 3, SIDE, SIDE, dtype=torch.uint8)
        crops_of(file, [[[0, 0, 30, 40]]], SIDE, out)
        return
    with pytest.raises(UserError, match=r"40 x 30 pixels, .*give --data\.max_pixels 1200"):
        EncodedImage(path, largest)
