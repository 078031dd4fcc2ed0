"""Files of numbers, as the libraries of their formats write them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import zarr
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

Array = np.ndarray[Any, Any]

SUFFIXES = (".tif", ".npy", ".npz", ".h5", ".dcm", ".png")
"""Kinds that `write_numbers` writes."""


def deep(*shape: int, top: int = 2**16, kind: Any = np.uint16, seed: int = 0) -> Array:
    """Random whole numbers from 0 to `top` - 1."""
    return np.random.default_rng(seed).integers(0, top, shape).astype(kind)


def dicom(path: Path, array: Array, **about: Any) -> Path:
    """A DICOM file of 16 bits, `[H, W]` or `[frames, H, W]`."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns = array.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, int(array.dtype.kind == "i")
    file.PixelData = array.tobytes()
    for name, value in about.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def write_numbers(path: Path, image: Array) -> Path:
    """A file of an image `[C, H, W]`, of the suffix's kind; DICOM and PNG have C = 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    if path.suffix == ".tif":
        planar = "contig" if len(image) > 1 else None
        tifffile.imwrite(path, last, photometric="minisblack", planarconfig=planar)
    elif path.suffix == ".npy":
        np.save(path, last)
    elif path.suffix == ".npz":
        np.savez(path, last)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["image"] = last
    elif path.suffix == ".dcm":
        dicom(path, last)
    else:
        Image.fromarray(last).save(path)
    return path


def write_stored(root: Path, kind: str, **arrays: Array) -> Path:
    """Arrays by their names, as `--data.dataset npz|npy|hdf5|zarr` reads them."""
    root.parent.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        with root.open("wb") as archive:
            np.savez(archive, **arrays)
    elif kind == "npy":
        root.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(root / f"{name}.npy", array)
    elif kind == "hdf5":
        with h5py.File(root, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        group = zarr.open_group(root, mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)
    return root
