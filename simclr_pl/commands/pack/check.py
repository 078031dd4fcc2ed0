"""`pack --check`: all files of a folder that cannot be read, each with its reason."""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from simclr_pl.core.data.sources import MAX_PIXELS
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.decode import BadImageError, EncodedImage
from simclr_pl.images.files.listing import LeftOut
from simclr_pl.images.readers.folder import read_folder
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.images.workers.processes import batches_of, begin, end_workers, sent

CHUNK = 16
"""Files that a worker looks at before it says so."""


def check_images(folder: str, *, num_workers: int = 2, max_pixels: int = MAX_PIXELS) -> None:
    """Decodes every image of a folder; a line for each that cannot be, and one for all of them.

    Args:
        folder: of images, as data set `folder` has it.
        num_workers: processes that decode; 0 decodes in this one.
        max_pixels: of an image.

    Raises:
        UserError: there are files that cannot be read, with their number.
    """
    if num_workers < 0:
        raise UserError(f"num_workers is {num_workers}, but must be 0 or more")
    left = LeftOut()
    raw = read_folder(Path(folder), left=left)
    splits = [split for split in (raw.train, raw.val, raw.test) if isinstance(split, ImageFiles)]
    paths = [path for split in splits for path in split.paths]
    bad = [(path, f"it is {kind}") for path, kind in left.unread]
    total = len(paths) + len(bad)
    loader: DataLoader[list[tuple[Path, str]]] = DataLoader(
        _Bad(paths, max_pixels),
        batch_sampler=[part.tolist() for part in torch.arange(len(paths)).split(CHUNK)],
        num_workers=num_workers,
        collate_fn=sent,
        worker_init_fn=begin,
        persistent_workers=num_workers > 0,
    )
    try:
        with tqdm(desc="checking", total=len(paths), unit=" images", disable=None) as bar:
            for found in batches_of(loader):
                bad += found
                bar.update(min(CHUNK, len(paths) - bar.n))
    finally:
        end_workers(loader)
    for path, why in sorted(bad):
        sys.stdout.write(f"{path}: {why}\n")
    if bad:
        raise UserError(
            f"{len(bad)} of {total} images of {folder} cannot be read: remove what is listed, or "
            "save it again"
        )
    sys.stdout.write(f"all {total} images of {folder} can be read\n")


class _Bad(Dataset[list[tuple[Path, str]]]):
    """Runs in the workers: those of some files that cannot be read."""

    def __init__(self, paths: list[Path], max_pixels: int) -> None:
        self.paths, self.max_pixels = paths, max_pixels

    def __getitems__(self, places: list[int]) -> list[tuple[Path, str]]:
        found = []
        for path in (self.paths[place] for place in places):
            try:
                EncodedImage(path, self.max_pixels).rgb()
            except BadImageError as error:
                found.append((path, error.why))
        return found
