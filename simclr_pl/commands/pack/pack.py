"""`pack`: a folder of images decoded once, for training that decodes nothing."""

import errno
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from simclr_pl.cluster.signals import handled
from simclr_pl.commandline.call import call
from simclr_pl.commands.pack.check import check_images
from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.paths import expanded
from simclr_pl.core.views.parameters import MIN_SIDE
from simclr_pl.images.files.decode import BadImageError, EncodedImage, without_pils_limit
from simclr_pl.images.readers.manifest import read_listed
from simclr_pl.images.readers.packed import PIXELS, save_index, save_pixels
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.images.workers.pool import results_of
from simclr_pl.locks import alone

LONGEST = 2
"""Sides of an image that is kept whole: a longer one is cut to so many times its shorter side."""

Decode = Callable[[list[Path]], tuple[Tensor, Tensor]]
"""Files to their planes one after the other, and `int64 [N, 2]`, their heights and widths."""

CHUNK = 16
"""Images that a worker hands over at a time."""


def pack(
    folder: str,
    out: str,
    *,
    short_side: int = 256,
    num_workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> Path:
    """Writes a folder of images once as one file of pixels, to be trained on as `packed`.

    An image whose shorter side exceeds `short_side` is shrunk (bilinear, antialiased), and a
    panorama longer than 2:1 is cropped to its middle. Classes and splits are those of data set
    `folder`. `pack FOLDER --check` writes nothing, and lists all files that cannot be read.

    Args:
        folder: of images: a folder a class, or none, or such below train/, val/ and test/; or a
            manifest, a CSV or parquet file that lists them.
        out: directory to write, which must not exist.
        short_side: longest that an image's shorter side stays, in pixels.
        num_workers: processes that decode; 0 decodes in this one.
        max_pixels: of an image; larger ones are refused.

    Returns:
        The directory.

    Raises:
        UserError: nothing to pack, an image that cannot be decoded, `out` exists or cannot be
            written, or numbers out of range. Nothing is left behind.
    """
    check(short_side >= MIN_SIDE, "short_side", short_side, f"at least {MIN_SIDE} pixels")
    check(num_workers >= 0, "num_workers", num_workers, "0 or more")
    source, target = expanded(folder), expanded(out)
    if not source.exists():
        raise UserError(
            f"there is no folder {source}: give the images' folder first (or a manifest)"
        )
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists: give another directory, or remove it first")
    if not target.absolute().parent.is_dir():
        raise UserError(f"there is no folder {target.parent} to write {target.name} into: make it")
    raw = read_listed(source)
    splits: Any = raw.splits
    decode = partial(_decoded, short_side=short_side, max_pixels=max_pixels)
    try:
        with alone(target.with_name(f".{target.name}.lock"), f"to write {target}") as lock:
            try:
                if target.exists():
                    raise UserError(f"{target} was written by another pack meanwhile: it is whole")
                _write(target, splits, raw.classes, decode, num_workers)
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space, or give a smaller short_side" if full else "give another place"
        raise UserError(f"{target} cannot be written ({error.strerror}): {hint}") from error
    images, size = sum(map(len, splits.values())), (target / PIXELS).stat().st_size
    sys.stdout.write(
        f"{images} images packed into {target} ({size / 1e9:.3g} GB): train on them with "
        f"--data.dataset packed --data.root {target}\n"
    )
    return target


def _write(
    target: Path,
    splits: dict[str, ImageFiles],
    classes: tuple[str, ...],
    decode: Decode,
    workers: int,
) -> None:
    """Writes beside the target and renames: a folder under its final name is always complete."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of one that was killed
    try:
        unfinished.mkdir()
        sizes = _write_pixels(unfinished / PIXELS, splits, decode, workers)
        save_index(unfinished, sizes, splits, classes)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_pixels(
    path: Path, splits: dict[str, ImageFiles], decode: Decode, workers: int
) -> Tensor:
    """Writes all splits' images; returns `int64 [N, 2]`, the height and width that each has now."""
    paths = [path for split in splits.values() for path in split.paths]
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    results = results_of(decode, chunks, workers)
    bar = tqdm(desc="packing", total=len(paths), unit=" images", disable=None)
    sizes: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        for pixels, of_chunk in results:
            sizes.append(of_chunk)
            yield pixels
            bar.update(len(of_chunk))

    with closing(results), bar, path.open("wb") as file:
        save_pixels(file, images())
    return torch.cat(sizes)


def _decoded(paths: list[Path], short_side: int, max_pixels: int) -> tuple[Tensor, Tensor]:
    """Runs in the workers: planes of some files one after the other, and their sizes."""
    try:
        images = [smaller(EncodedImage(path, max_pixels).rgb(), short_side) for path in paths]
    except BadImageError as error:  # out of a worker comes what the command line knows
        raise UserError(str(error)) from None
    pixels = torch.cat([pil_to_tensor(image).flatten() for image in images])
    return pixels, torch.tensor([(image.height, image.width) for image in images])


def smaller(image: Image.Image, short_side: int) -> Image.Image:
    """The middle of a panorama, then no shorter side above `short_side` pixels."""
    short = min(image.size)
    width, height = (min(side, LONGEST * short) for side in image.size)
    if (width, height) != image.size:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        with without_pils_limit():
            image = image.crop((left, top, left + width, top + height))
    if short <= short_side:
        return image
    width, height = (max(short_side, round(side * short_side / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def run_cli(args: list[str]) -> None:
    """The command, which SIGTERM and SIGHUP interrupt as Ctrl-C does: nothing is left behind."""
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    with handled(ends, signal.default_int_handler):
        if "--check" in args:
            call(check_images, [arg for arg in args if arg != "--check"], positional=True)
        else:
            call(pack, args, positional=True)
