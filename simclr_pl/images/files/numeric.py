"""Kinds of files that hold numbers, beside those that Pillow opens."""

import io
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from simclr_pl.images.files.formats import decoders, kind_of


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        suffixes: of such files, in small letters.
        package: that reads them.
        extra: of this project, which installs the package.
    """

    suffixes: tuple[str, ...]
    package: str
    extra: str


FORMATS = {
    "TIFF": Kind((".tif", ".tiff"), "tifffile", "tiff"),
    "NumPy": Kind((".npy", ".npz"), "numpy", ""),
    "HDF5": Kind((".h5", ".hdf5", ".he5"), "h5py", "hdf5"),
    "DICOM": Kind((".dcm", ".dicom"), "pydicom", "dicom"),
}
"""Kinds by name. DICOM files without a suffix are known by their first bytes."""

SUFFIXES = frozenset(suffix for kind in FORMATS.values() for suffix in kind.suffixes)
"""Suffixes of all kinds, in small letters."""


def kind_of_numbers(suffix: str) -> str:
    """The kind of a suffix, in words; empty for one that is none."""
    return next((name for name, kind in FORMATS.items() if suffix in kind.suffixes), "")


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def kind_of_file(path: Path) -> str:
    """The kind of a file by its suffix, or of DICOM by its first bytes; empty for other files."""
    return kind_of_numbers(path.suffix.lower()) or ("DICOM" if is_dicom(path) else "")


_BEGINS = {
    b"\x93NUMPY": "NumPy", b"PK\3\4": "NumPy", b"\x89HDF": "HDF5",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
"""Kinds of files by their first bytes."""


def kind_of_content(content: bytes) -> str:
    """The kind of a file by its first bytes; empty for other files."""
    if content[128:132] == b"DICM":
        return "DICOM"
    return next((kind for begin, kind in _BEGINS.items() if content.startswith(begin)), "")


_BEGIN_BYTES = 4096
"""Bytes of a file that say what it is."""


def unlike(path: Path, kind: str) -> str:
    """What a file is by its first bytes, in words; empty where it begins as its name says.

    Args:
        path: the file, which cannot be read as `kind`.
        kind: a key of `FORMATS`.
    """
    with path.open("rb") as file:
        begin = file.read(_BEGIN_BYTES)
    found = kind_of_content(begin) or _pillows(begin)
    if found == kind:
        return ""
    if found:
        return f"it is {found}, but its name says {kind}"
    known = kind_of(begin)
    return known if known.startswith("it is ") else f"it is no {kind} file"


def _pillows(begin: bytes) -> str:
    """Pillow's name for the format of a file; empty for one that it does not read."""
    with suppress(Exception), Image.open(io.BytesIO(begin), formats=decoders()) as image:
        return str(image.format)
    return ""
