"""What a picture is: upright, on white, of all its bands, shades and pages; what is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import exif, photograph, stored
from PIL import Image

from simclr_pl import UserError
from simclr_pl.images.files.decode import EncodedImage


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


TOP = (4, 4, 24, 12)
"""Of a picture of 40 x 30 pixels, the part that is red; the rest is blue."""


def marked(width: int = 40, height: int = 30) -> Image.Image:
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", TOP)
    return image


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
        out = torch.empty(1, 3, 24, 24, dtype=torch.uint8)
        file.crops([[[0, 0, 30, 40]]], 24, out)
        return
    with pytest.raises(UserError, match=r"40 x 30 pixels, .*give --data\.max_pixels 1200"):
        EncodedImage(path, largest)
