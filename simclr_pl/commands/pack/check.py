"""`pack --check`: all files of a folder that cannot be read, each with its reason."""

import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.paths import expanded
from simclr_pl.images.files.decode import BadImageError, EncodedImage
from simclr_pl.images.files.listing import LeftOut
from simclr_pl.images.readers.manifest import read_listed
from simclr_pl.images.workers.pool import results_of

CHUNK = 16
"""Files that a worker looks at before it says so."""


def check_images(folder: str, *, num_workers: int = 2, max_pixels: int = MAX_PIXELS) -> None:
    """Decodes every image of a folder; a line for each that cannot be, and one for all of them.

    Args:
        folder: of images, as data set `folder` has it; or a manifest.
        num_workers: processes that decode; 0 decodes in this one.
        max_pixels: of an image.

    Raises:
        UserError: there are files that cannot be read, with their number.
    """
    check(num_workers >= 0, "num_workers", num_workers, "0 or more")
    left = LeftOut()
    splits: Any = read_listed(expanded(folder), left).splits
    paths = [path for split in splits.values() for path in split.paths]
    bad = [(path, f"it is {kind}") for path, kind in left.unread]
    total = len(paths) + len(bad)
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    results = results_of(partial(_bad_of, max_pixels=max_pixels), chunks, num_workers)
    bar = tqdm(desc="checking", total=len(paths), unit=" images", disable=None)
    with closing(results), bar:
        for chunk, found in zip(chunks, results, strict=True):
            bad += found
            bar.update(len(chunk))
    for path, why in sorted(bad):
        sys.stdout.write(f"{path}: {why}\n")
    if bad:
        raise UserError(
            f"{len(bad)} of {total} images of {folder} cannot be read: remove what is listed, or "
            "save it again"
        )
    sys.stdout.write(f"all {total} images of {folder} can be read\n")


def _bad_of(paths: list[Path], max_pixels: int) -> list[tuple[Path, str]]:
    """Runs in the workers: those files that cannot be read, each with the reason."""
    found = []
    for path in paths:
        try:
            EncodedImage(path, max_pixels).rgb()
        except BadImageError as error:
            found.append((path, error.why))
    return found
