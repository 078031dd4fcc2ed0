"""Files of numbers: each kind, made by its own library, read back to the number."""

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
import tifffile
import torch
from number_files import Array, deep, dicom
from PIL import Image

from simclr_pl import UserError
from simclr_pl.images.files.decode import BadImageError
from simclr_pl.images.numbers.read import page_count, read_numbers, window_of


def same(read: torch.Tensor, array: Array) -> None:
    """The same numbers `[C, H, W]`, of the same kind."""
    assert str(read.dtype).removeprefix("torch.") == str(array.dtype)
    np.testing.assert_array_equal(read.numpy(), array)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [1, 2, 5, 13])
def test_a_tiff_of_any_bands_and_depth(tmp_path: Path, bands: int, kind: Any) -> None:
    array = deep(bands, 9, 7, top=256, kind=kind)
    path = tmp_path / "a.tif"
    for planar in ("contig", "separate") if bands > 1 else ("contig",):
        there = array[0] if bands == 1 else array
        if planar == "contig" and bands > 1:
            there = array.transpose(1, 2, 0)
        tifffile.imwrite(path, there, photometric="minisblack", planarconfig=planar)
        same(read_numbers(path), array)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd"])
def test_a_compressed_tiff(tmp_path: Path, compression: str) -> None:
    array = deep(3, 16, 16)
    tifffile.imwrite(
        tmp_path / "a.tif", array, compression=compression, photometric="minisblack",
        planarconfig="separate",
    )  # fmt: skip
    same(read_numbers(tmp_path / "a.tif"), array)


def test_pages_are_asked_for_and_then_channels_or_images(tmp_path: Path) -> None:
    array, path = deep(4, 9, 7), tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for page in array:
            file.write(page)
    with pytest.raises(BadImageError, match=r"a.tif cannot be read \(it has 4 pages: give --data."):
        read_numbers(path)
    same(read_numbers(path, pages="channels"), array)
    assert page_count(path) == 4
    same(read_numbers(path, 2, "images"), array[2:3])


def test_pages_that_say_they_are_channels_are(tmp_path: Path) -> None:
    array, path = deep(5, 9, 7), tmp_path / "a.tif"
    tifffile.imwrite(path, array, imagej=True, metadata={"axes": "CYX"})
    same(read_numbers(path), array)


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    array, path = deep(32, 32), tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(array)
        file.write(array[::2, ::2], subfiletype=1)
    same(read_numbers(path), array[None])


def test_where_zero_is_white_numbers_are_turned_round(tmp_path: Path) -> None:
    array = deep(9, 7)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    same(read_numbers(tmp_path / "a.tif"), 65535 - array[None])


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (9, 9, 200)])
def test_numpy_files_have_their_channels_last(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = deep(*shape)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", image=array)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["some/where"] = array
    expected = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    for name in ("a.npy", "a.npz", "a.h5"):
        same(read_numbers(tmp_path / name), expected)


@pytest.mark.parametrize("kind", [np.int16, np.float16, np.float64, np.int32, bool, ">u2"])
def test_other_kinds_of_numbers_lose_none(tmp_path: Path, kind: Any) -> None:
    array = (deep(9, 7, top=1000).astype(np.int64) - 500).astype(kind)
    np.save(tmp_path / "a.npy", array)
    read = read_numbers(tmp_path / "a.npy")
    assert read.dtype == (torch.uint16 if kind == ">u2" else torch.float32)
    np.testing.assert_array_equal(read[0].double().numpy(), array.astype(np.float64))


def test_dicom_files_by_slope_and_intercept(tmp_path: Path) -> None:
    array = deep(9, 7, top=4096)
    same(read_numbers(dicom(tmp_path / "a.dcm", array)), array[None])
    path = dicom(tmp_path / "ct", array, RescaleSlope=2, RescaleIntercept=-1024)
    same(read_numbers(path), (2.0 * array[None] - 1024).astype(np.float32))
    frames = deep(3, 9, 7)
    path = dicom(tmp_path / "b.dcm", frames, NumberOfFrames=3)
    with pytest.raises(BadImageError, match=r"3 pages: give --data.pages"):
        read_numbers(path)
    assert page_count(path) == 3
    same(read_numbers(path, 1, "images"), frames[1:2])
    same(read_numbers(path, pages="channels"), frames)


def test_a_dicom_file_whose_low_is_white(tmp_path: Path) -> None:
    array = deep(9, 7, top=4096)
    about = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    read = read_numbers(dicom(tmp_path / "a.dcm", array, **about))
    np.testing.assert_array_equal(read[0].numpy(), 4095 - array.astype(np.float32))


def test_the_window_of_a_dicom_file(tmp_path: Path) -> None:
    array = deep(9, 7)
    about: dict[str, Any] = {"WindowCenter": [40, 50], "WindowWidth": [400, 20]}
    assert window_of(dicom(tmp_path / "a.dcm", array, **about)) == (-160, 240)
    assert window_of(dicom(tmp_path / "b.dcm", array)) is None
    assert window_of(tmp_path / "a.tif") is None


def test_what_pillow_opens_stays_what_it_is(tmp_path: Path) -> None:
    gray, rgb, sixteen = deep(9, 7, top=256, kind=np.uint8), deep(9, 7, 3, top=256), deep(9, 7)
    Image.fromarray(gray).save(tmp_path / "a.png")
    same(read_numbers(tmp_path / "a.png"), gray[None])
    Image.fromarray(rgb.astype(np.uint8)).save(tmp_path / "b.png")
    same(read_numbers(tmp_path / "b.png"), rgb.astype(np.uint8).transpose(2, 0, 1))
    Image.fromarray(sixteen).save(tmp_path / "c.png")
    same(read_numbers(tmp_path / "c.png"), sixteen[None])


def test_a_photograph_on_its_side_is_turned(tmp_path: Path) -> None:
    gray = deep(9, 7, top=256, kind=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gray).save(tmp_path / "a.png", exif=exif)
    same(read_numbers(tmp_path / "a.png"), np.rot90(gray, -1)[None])


SUFFIXES = (".tif", ".npy", ".h5", ".dcm")


def made(path: Path, what: str) -> None:
    """A file that is no image, or not whole."""
    array = deep(64, 64)
    floats = array.astype(np.float32)
    floats[3, 4], floats[5, 6] = np.nan, np.inf
    if path.suffix == ".tif":
        tifffile.imwrite(path, floats if what == "nan" else array, photometric="minisblack")
    elif path.suffix == ".npy":
        shapes = {"channels first": (4, 32, 32), "four axes": (1, 2, 3, 4), "text": (4, 4)}
        other = np.zeros(shapes.get(what, (64, 64)), "U3" if what == "text" else np.uint16)
        np.save(
            path, floats if what == "nan" else np.full((8, 8), 2**40) if what == "big" else other
        )
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["a"] = array
            if what == "two":
                file["b"] = array
    else:
        dicom(path, array)
    if what == "zero":
        path.write_bytes(b"")
    elif what == "short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "other":
        path.write_bytes(b"hello, I am no image" * 100)


UNFIT = [
    ("nan", ".tif", r"2 of its numbers are NaN or infinite"),
    ("nan", ".npy", r"2 of its numbers are NaN or infinite"),
    ("channels first", ".npy", r"its array is \[4, 32, 32\], which looks like \[C, H, W\]"),
    ("four axes", ".npy", r"its array is \[1, 2, 3, 4\], but must be"),
    ("text", ".npy", r"its numbers are <U3"),
    ("big", ".npy", r"its whole numbers go beyond 16777216"),
    ("two", ".h5", r"it has 2 arrays of 2 or 3 axes"),
    *((what, suffix, "") for what in ("zero", "short", "other") for suffix in SUFFIXES),
]


@pytest.mark.parametrize(("what", "suffix", "why"), UNFIT)
def test_what_is_no_image_is_a_sentence(tmp_path: Path, what: str, suffix: str, why: str) -> None:
    path = tmp_path / f"a{suffix}"
    made(path, what)
    with pytest.raises(BadImageError, match=rf"a\{suffix} cannot be read \({why}") as error:
        read_numbers(path)
    assert "\n" not in str(error.value)


def test_a_larger_image_is_read_where_that_is_allowed(tmp_path: Path) -> None:
    for name in ("a.tif", "a.npy", "a.png"):
        path = tmp_path / name
        array = deep(40, 30, top=256, kind=np.uint8)
        if name == "a.npy":
            np.save(path, array)
        else:
            Image.fromarray(array).save(path)
        with pytest.raises(BadImageError, match=r"30 x 40 pixels, .* give --data.max_pixels 1200"):
            read_numbers(path, max_pixels=1199)
        same(read_numbers(path, max_pixels=1200), array[None])


def test_sixteen_bits_a_colour_are_not_halved(tmp_path: Path) -> None:
    """Pillow keeps 8 bits of each colour of a PNG."""
    import imagecodecs

    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep(9, 7, 3)))
    with pytest.raises(BadImageError, match="16 bits a colour, of which Pillow keeps 8"):
        read_numbers(tmp_path / "a.png")


def test_a_missing_package_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom(tmp_path / "a.dcm", deep(9, 7))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"needs the package pydicom: pip install 'simclr_pl\[dico"):
        read_numbers(path)
    assert pydicom


def test_the_content_of_a_file_is_read_as_the_file_is(tmp_path: Path) -> None:
    array = deep(1, 9, 7)
    tifffile.imwrite(tmp_path / "a.tif", array[0])
    tifffile.imwrite(tmp_path / "b.tif", array[0], byteorder=">", bigtiff=True)
    np.save(tmp_path / "a.npy", array[0])
    np.savez(tmp_path / "a.npz", array[0])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = array[0]
    dicom(tmp_path / "a.dcm", array[0])
    Image.fromarray(array[0]).save(tmp_path / "a.png")
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        same(read_numbers("an item", content=content), array)
        with pytest.raises(BadImageError, match="an item cannot be"):
            read_numbers("an item", content=content[: len(content) // 3])
