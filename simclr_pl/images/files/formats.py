"""Formats of image files: which are read on this machine, and what is said of the others.

Pillow knows more formats, and goes by first bytes, not by names: it would start Ghostscript for an
EPS that is called .png. Only decoders that run no other program are asked.
"""

import io
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2


class Format(NamedTuple):
    """A format of image files.

    Attributes:
        suffixes: suffixes of such files, in small letters.
        codec: library that Pillow needs for the format, as `PIL.features` calls it.
        remedy: what to do where this build of Pillow lacks the library.
    """

    suffixes: tuple[str, ...]
    codec: str | None = None
    remedy: str = "install Pillow's own wheel, which reads it"


FORMATS = {
    "JPEG": Format((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "jpg"),
    "PNG": Format((".png", ".apng"), "zlib"),
    "WEBP": Format((".webp",), "webp"),
    "TIFF": Format((".tif", ".tiff")),
    "BMP": Format((".bmp", ".dib")),
    "GIF": Format((".gif",)),
    "PPM": Format((".ppm", ".pgm", ".pbm", ".pnm", ".pfm")),
    "JPEG2000": Format((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "jpg_2000"),
    "AVIF": Format((".avif", ".avifs"), "avif", "Pillow 11.3 or newer reads it"),
    "QOI": Format((".qoi",)),
    "HEIF": Format((".heic", ".heif", ".hif"), None, "pip install pillow-heif, which reads it"),
}
"""Formats by Pillow's names for them, the most frequent ones first."""

_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
"""Formats by the brand in the first box of the container that HEIC and AVIF share."""

_OTHERS = {
    b"%!PS": "EPS or PostScript, a program rather than an image",
    b"\xc5\xd0\xd3\xc6": "EPS, a program rather than an image",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop document",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"version https://git-lfs": "Git LFS's pointer to an image: git lfs pull brings the image",
}
"""What a file that is called an image may be instead, by its first bytes."""


@cache
def decoders() -> tuple[str, ...]:
    """Names of the formats that are read on this machine, as `Image.open(formats=...)` has them."""
    Image.init()
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN and _has(FORMATS[name].codec))


def _has(codec: str | None) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow warns of names that it does not know
        return codec is None or bool(features.check(codec))


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the files that are read on this machine, in small letters."""
    return frozenset(suffix for name in decoders() for suffix in FORMATS[name].suffixes)


def unread(suffix: str) -> str:
    """The format of a suffix and the remedy, where the format is not read here; else empty."""
    for name, kind in FORMATS.items():
        if suffix in kind.suffixes and suffix not in suffixes():
            return f"{'HEIC' if name == 'HEIF' else name}: {kind.remedy}"
    return ""


def is_image(path: Path) -> bool:
    """Whether a file without a suffix begins like an image of a format that is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path, formats=decoders()).close()
    except Image.DecompressionBombError:
        return True
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def kind_of(content: bytes) -> str:
    """What a file is that no decoder takes, in words, with a remedy where there is one."""
    if not content:
        return "it is empty"
    brand = _BRANDS.get(content[8:12]) if content[4:8] == b"ftyp" else None
    if brand is not None and brand not in decoders():
        return f"it is {'HEIC' if brand == 'HEIF' else brand}: {FORMATS[brand].remedy}"
    for start, what in _OTHERS.items():
        if content.startswith(start):
            return f"it is {what}"
    if content[:2] in (b"II", b"MM"):
        return _kind_of_tiff(content)
    return "no kind of image that PIL knows"


def _kind_of_tiff(content: bytes) -> str:
    """Bands and bits of a TIFF that Pillow has no mode for, in words."""
    try:
        tags = ImageFileDirectory_v2(content[: 16 if content[2] == 43 else 8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        bands, bits = int(tags.get(277, 1)), max(tags.get(258, (1,)))
    except Exception:  # whatever Pillow raises of broken files
        return "a TIFF whose header is broken"
    plural = "s" if bands > 1 else ""
    return f"it is a TIFF of {bands} band{plural} of {bits} bits, which PIL does not read"
