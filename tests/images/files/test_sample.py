"""What is seen of a folder before anything is trained: ranges of 16 bits, and animations."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import photograph
from PIL import Image

from simclr_pl import UserError
from simclr_pl.commands.pack.pack import pack
from simclr_pl.images.datasets import load


def colours_of_16_bits(path: Path, pixels: np.ndarray) -> None:
    """A PNG of 16 bits a band, which PIL doesn't write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    height, width = pixels.shape[:2]
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def gray(path: Path, shades: np.ndarray) -> None:
    Image.fromarray(shades.astype(np.uint16)).save(path)


def numbers(low: int, high: int, *shape: int) -> np.ndarray:
    found = np.random.default_rng(0).integers(low, high + 1, shape, dtype=np.uint16)
    found.flat[:2] = low, high
    return found


@pytest.mark.parametrize(
    ("low", "high", "shades"), [(0, 4095, 16), (0, 1023, 4), (0, 16383, 64), (31768, 36000, 17)]
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_few_bits_in_sixteen_are_refused_with_the_numbers_seen(
    tmp_path: Path, low: int, high: int, shades: int, suffix: str
) -> None:
    """Only the upper 8 bits would be used."""
    for place in range(3):
        gray(tmp_path / f"{place}.{suffix}", numbers(low, high, 6, 5))
    why = rf"range {low} to {high} of 65535 \(3 files were looked at\), which would be {shades} of"
    with pytest.raises(UserError, match=why):
        load("folder", tmp_path)
    with pytest.raises(UserError, match=why):
        pack(str(tmp_path), str(tmp_path / "set"), num_workers=0)


@pytest.mark.parametrize("how", ["error", "skip"])
def test_a_file_of_sixteen_bits_among_photographs_is_named(tmp_path: Path, how: Any) -> None:
    for place in range(20):
        photograph(31, 30, place).save(tmp_path / f"{place:02}.png")
    gray(tmp_path / "07.png", numbers(0, 4095, 30, 31))
    why = (
        rf"\(1 files were looked at\), .*: remove them \(the first one is {tmp_path}/07.png\), or "
    )
    with pytest.raises(UserError, match=why):
        load("folder", tmp_path, on_bad_image=how)


def test_colours_of_few_bits_in_sixteen_are_refused(tmp_path: Path) -> None:
    colours_of_16_bits(tmp_path / "0.png", numbers(0, 4095, 6, 5, 3))
    with pytest.raises(UserError, match="range 0 to 4095 of 65535"):
        load("folder", tmp_path)


def test_sixteen_bits_that_are_used_stay(tmp_path: Path) -> None:
    """One of them may be dark: a set has one range."""
    gray(tmp_path / "0.png", numbers(0, 4095, 6, 5))
    gray(tmp_path / "1.png", numbers(0, 65535, 6, 5))
    colours_of_16_bits(tmp_path / "2.png", numbers(0, 60000, 6, 5, 3))
    photograph(8, 8).save(tmp_path / "3.png")
    (tmp_path / "4.png").write_bytes(b"broken")
    assert len(load("folder", tmp_path).train) == 5


def test_bits_that_a_file_speaks_of_are_no_part_of_sixteen(tmp_path: Path) -> None:
    (tmp_path / "0.pgm").write_bytes(
        b"P5 5 6 4095\n" + numbers(0, 4095, 6, 5).astype(">u2").tobytes()
    )
    assert len(load("folder", tmp_path).train) == 1


def test_animations_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [photograph(20, 20, seed) for seed in range(3)]
    for name in ("a.gif", "b.png", "c.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "d.gif")
    frames[0].save(tmp_path / "e.jpg", "MPO", save_all=True, append_images=frames[1:])
    load("folder", tmp_path)
    assert capsys.readouterr().out.endswith(
        "nothing is left out; 3 of 5 files looked at are animations, of which the first frame "
        "is used\n"
    )
