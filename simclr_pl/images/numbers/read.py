"""One file's numbers as they are stored: TIFF, NumPy, HDF5, DICOM, and whatever Pillow opens.

No bit is dropped: a file whose numbers are reduced on the way is refused.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_pl.core.data.sources import MAX_PIXELS, Pages
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.images.files.decode import BadImageError, EncodedImage, check_size
from simclr_pl.images.files.numeric import FORMATS, kind_of_content, kind_of_file, unlike
from simclr_pl.images.files.pixels import to_rgb

Array = np.ndarray[Any, Any]

_EXACT = 2**24
"""Whole numbers up to this one are exact as `float32`."""


def read_numbers(
    path: str | Path,
    page: int | None = None,
    pages: Pages | None = None,
    max_pixels: int = MAX_PIXELS,
    content: bytes | None = None,
) -> Tensor:
    """The numbers of an image file.

    Args:
        path: the file, whose suffix says what it is (DICOM is known by its first bytes, too); or
            the image's name where `content` is given.
        page: the page that is wanted, where pages are images.
        pages: what the pages of a file are; `None`: it must have one.
        max_pixels: largest number of pixels that is read.
        content: the file's bytes, which say what it is.

    Returns:
        `uint8`, `uint16` or `float32` `[C, H, W]`; other numbers become `float32`.

    Raises:
        BadImageError: the file cannot be read, its shape is of no image, or a number is lost.
        UserError: a package that reads such files is missing.
    """
    kind = kind_of_file(Path(path)) if content is None else kind_of_content(content)
    with _named(path, kind if content is None else ""):
        if kind in _READERS:
            library = _package(FORMATS[kind].package, path)
            file = path if content is None else io.BytesIO(content)
            array = _READERS[kind](library, file, page, pages)
        else:
            array = _pillow(path, max_pixels, content)
        check_size(path, array.shape[-1], array.shape[-2], max_pixels)
        return as_tensor(array)


def page_count(path: Path) -> int:
    """How many pages a file has: 1 for a kind of file without pages, or one that is broken."""
    try:
        kind = kind_of_file(path)
        if kind == "TIFF":
            with _package("tifffile", path).TiffFile(path) as file:
                return len(_pages(file)) or 1
        if kind == "DICOM":
            header = _package("pydicom", path).dcmread(path, stop_before_pixels=True)
            return int(header.get("NumberOfFrames", 1) or 1)
    except UserError:
        raise
    except Exception:  # whatever the libraries raise: reading the file says what it is
        return 1
    return 1


def _package(name: str, path: str | Path) -> Any:
    """An optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        extra = next(kind.extra for kind in FORMATS.values() if kind.package == name)
        raise UserError(
            f"{path} needs the package {name}: pip install 'simclr_pl[{extra}]'"
        ) from error


@contextmanager
def _named(path: str | Path, kind: str) -> Iterator[None]:
    """A context whose errors become a `BadImageError` of a file whose name says `kind`, if any."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything for broken files
        why = in_one_line(error)
        if isinstance(error, OSError) and error.strerror:
            why = error.strerror
        elif isinstance(error, _UnfitError):
            why = str(error)
        elif kind:
            why = unlike(Path(path), kind) or why
        raise BadImageError(
            f"{path} cannot be read ({why}): remove it, or save it again", why
        ) from error


class _UnfitError(ValueError):
    """Why a file is no image here, in words."""


# Kinds of files: each is read by its library, as [H, W] or [C, H, W] -----------------------------


def _tiff(tifffile: Any, path: Any, page: int | None, pages: Pages | None) -> Array:
    with tifffile.TiffFile(path) as file:
        found = _pages(file)
        if not found:
            raise _UnfitError("a TIFF without a page")
        if page is not None:
            return _of_page(found[page])
        axes = file.series[0].axes if file.series else ""
        known = pages == "channels" or axes in ("CYX", "CYXS")
        if len(found) > 1 and not known:
            raise _UnfitError(_ASK.format(len(found)))
        return np.concatenate([_of_page(each) for each in found])


_ASK = (
    "it has {} pages: give --data.pages channels, if they are channels of one image, or "
    "--data.pages images"
)


def _pages(file: Any) -> list[Any]:
    """Pages of a TIFF that are pictures of their own; smaller copies and masks are not."""
    return [page for page in file.pages if not int(getattr(page, "subfiletype", 0) or 0) & 0b101]


def _of_page(page: Any) -> Array:
    """`[C, H, W]`."""
    if page.photometric is not None and int(page.photometric) == 3:
        raise _UnfitError("a TIFF with a palette: save it as gray or RGB")
    array, axes = page.asarray(), page.axes
    if axes == "YX":
        array = array[None]
    elif axes == "YXS":
        array = array.transpose(2, 0, 1)
    elif axes != "SYX":
        raise _UnfitError(f"a TIFF page of axes {axes}")
    if page.photometric is not None and int(page.photometric) == 0:  # zero is white
        array = (2 ** int(page.bitspersample) - 1) - array
    return np.asarray(array)


def _numpy(numpy: Any, path: Any, page: int | None, pages: Pages | None) -> Array:
    """An .npy file, or an .npz file of one array: `[H, W]` or `[H, W, C]`."""
    # (NumPy does not close an archive that it cannot read.)
    with path if isinstance(path, io.BytesIO) else Path(path).open("rb") as file:
        array = numpy.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            with array as archive:
                if len(archive.files) != 1:
                    raise _UnfitError(f"it has {len(archive.files)} arrays, but must have one")
                array = archive[archive.files[0]]
    return channels_first(array)


def _hdf5(h5py: Any, path: Any, page: int | None, pages: Pages | None) -> Array:
    """An HDF5 file of one dataset: `[H, W]` or `[H, W, C]`."""
    with h5py.File(path, "r") as file:
        found: list[Any] = []
        file.visititems(lambda _, item: found.append(item) if hasattr(item, "shape") else None)
        arrays = [item for item in found if len(item.shape) in (2, 3)]
        if len(arrays) != 1:
            raise _UnfitError(f"it has {len(arrays)} arrays of 2 or 3 axes, but must have one")
        return channels_first(np.asarray(arrays[0][()]))


def channels_first(array: Array) -> Array:
    """`[H, W]` or `[H, W, C]` as `[C, H, W]`.

    Raises:
        ValueError: another number of axes, or axes that look like `[C, H, W]` already.
    """
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise _UnfitError(f"its array is {[*array.shape]}, but must be [H, W] or [H, W, C]")
    if is_channels_first(array.shape):
        raise _UnfitError(
            f"its array is {[*array.shape]}, which looks like [C, H, W]: save it as [H, W, C]"
        )
    return array.transpose(2, 0, 1)


def is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the three last axes look like channels, height, width, as torch has them."""
    first, middle, last = shape[-3:]
    return first < last and first != middle and (middle == last or first <= 4)


def _dicom(pydicom: Any, path: Any, page: int | None, pages: Pages | None) -> Array:
    """Numbers by slope and intercept (Hounsfield units of a CT); dark is low."""
    header = pydicom.dcmread(path)
    array = np.asarray(header.pixel_array)
    samples = int(header.get("SamplesPerPixel", 1))
    frames = int(header.get("NumberOfFrames", 1) or 1)
    array = array.reshape(frames, *array.shape[-2 - (samples > 1) :])
    if page is not None:
        array = array[page : page + 1]
    elif frames > 1 and pages != "channels":
        raise _UnfitError(_ASK.format(frames))
    if samples > 1:
        array = array.transpose(0, 3, 1, 2).reshape(-1, *array.shape[1:3])
    elif str(header.get("PhotometricInterpretation")) == "PALETTE COLOR":
        raise _UnfitError("a DICOM file with a palette: save it as gray or RGB")
    if str(header.get("PhotometricInterpretation")) == "MONOCHROME1":  # low is white
        signed = int(header.get("PixelRepresentation", 0))
        array = (-1 if signed else 2 ** int(header.BitsStored) - 1) - array.astype(np.int32)
    slope, intercept = (
        float(header.get(key, plain) or plain)
        for key, plain in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if (slope, intercept) != (1.0, 0.0):
        array = (array.astype(np.float64) * slope + intercept).astype(np.float32)
    return array


def window_of(path: Path) -> tuple[float, float] | None:
    """The least and greatest number that a DICOM file asks to be shown; `None` where none does."""
    if kind_of_file(path) != "DICOM":
        return None
    try:
        header = _package("pydicom", path).dcmread(path, stop_before_pixels=True)
        # A file may have several windows: the first is meant.
        centre, width = (
            float(np.ravel(header[key].value)[0]) for key in ("WindowCenter", "WindowWidth")
        )
    except UserError:
        raise
    except Exception:  # a file without them, or a broken one
        return None
    return (centre - width / 2, centre + width / 2) if width > 0 else None


def _pillow(path: str | Path, max_pixels: int, content: bytes | None) -> Array:
    """Files that Pillow opens: gray of 8 or 16 bits and RGB as they are, all others as RGB."""
    file = EncodedImage(path, max_pixels, content)
    deep, image = file.is_deep, file.decoded()
    if image.mode == "L" and "transparency" not in image.info:
        return np.asarray(file.upright(image))[None]
    if deep and (image.mode.startswith("I;16") or image.mode == "I"):
        return np.asarray(file.upright(image)).astype(np.uint16)[None]
    if deep:
        raise _UnfitError(
            "16 bits a colour, of which Pillow keeps 8: save it as TIFF, which is read whole"
        )
    return np.asarray(file.upright(to_rgb(image))).transpose(2, 0, 1)


_READERS: dict[str, Callable[[Any, Any, int | None, Pages | None], Array]] = {
    "TIFF": _tiff,
    "NumPy": _numpy,
    "HDF5": _hdf5,
    "DICOM": _dicom,
}


def as_tensor(array: Array) -> Tensor:
    """Numbers of any kind as `uint8`, `uint16` or `float32`.

    Raises:
        ValueError: numbers that are not finite, or whole numbers that `float32` cannot hold.
    """
    native = array.dtype.newbyteorder("=")
    if native in (np.uint8, np.uint16):
        return torch.from_numpy(np.array(array, native, order="C"))
    if array.dtype.kind not in "biuf":
        raise _UnfitError(f"its numbers are {array.dtype}")
    whole = array.dtype.kind in "iu" and array.size
    if whole and max(-int(array.min()), int(array.max())) > _EXACT:
        raise _UnfitError(f"its whole numbers go beyond {_EXACT}, where float32 is not exact")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise _UnfitError(f"{bad} of its numbers are NaN or infinite")
    numbers = torch.from_numpy(np.array(array, np.float32, order="C"))
    if not bool(torch.isfinite(numbers).all()):
        raise _UnfitError("its numbers are too large for float32")
    return numbers
