"""Which decoders are asked, and what a file is that none of them takes."""

import sys
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from simclr_pl import UserError
from simclr_pl.images.files.decode import EncodedImage
from simclr_pl.images.files.formats import FORMATS, decoders, suffixes, unread


def test_a_program_called_png_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow goes by the first bytes, and has Ghostscript draw what is EPS."""
    ran = tmp_path / "ran"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {ran}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(ghostscript))
    path = tmp_path / "image.png"
    Image.new("RGB", (20, 20)).save(path, "EPS")
    with pytest.raises(UserError, match=r"image\.png cannot be decoded \(it is EPS"):
        EncodedImage(path).rgb()
    assert not ran.exists()


def test_suffixes_are_those_of_the_decoders() -> None:
    Image.init()
    known = Image.registered_extensions()
    for suffix in suffixes() - {".dib"}:
        assert known[suffix] in (*decoders(), "MPO")
    assert {".jpg", ".png", ".gif", ".webp", ".tif"} <= suffixes()
    assert not suffixes() & {".eps", ".ps", ".psd", ".txt"}


def test_a_format_that_this_pillow_was_built_without_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoders.cache_clear()
    suffixes.cache_clear()
    monkeypatch.setattr("PIL.features.check", lambda name: name not in ("avif", "jpg_2000"))
    try:
        assert set(FORMATS) - set(decoders()) >= {"AVIF", "JPEG2000"}
        assert unread(".avif") == "AVIF: Pillow 11.3 or newer reads it"
        assert unread(".jp2").startswith("JPEG2000: ")
        assert unread(".txt") == unread(".png") == ""
    finally:
        decoders.cache_clear()
        suffixes.cache_clear()


CONTENTS = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC: pip install pillow-heif"),
    "PDF": (b"%PDF-1.7", "it is a PDF"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "it is Git LFS's pointer"),
    "text": (b"<html>", "no kind of image that PIL knows"),
}


@pytest.mark.parametrize(("content", "why"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.skipif("pillow_heif" in sys.modules, reason="reads HEIC")
def test_what_no_decoder_takes_is_said(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=why):
        EncodedImage(path)
