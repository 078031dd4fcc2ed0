"""Turned views of image files: workers cut the turned box's hull, mirrored, and views turn it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image
from torch import Tensor

from simclr_pl import SimCLRViews
from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.views.own import clean_of, views_of
from simclr_pl.images.files.decode import cut_box
from simclr_pl.images.views.extended import MoreViews
from simclr_pl.images.workers.images import ImageFiles

SIDE = 24
SIZES = [(90, 70), (60, 61), (48, 120), (200, 150), (33, 30), (77, 52)]
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for number, (width, height) in enumerate(SIZES):
        paths.append(folder / f"{number}.png")
        photograph(width, height, number).save(paths[-1])
    return paths


def batch_of(
    paths: list[Path], views: SimCLRViews, cut: Cut, places: list[int], workers: int = 0
) -> Batch:
    source = ImageFiles(paths, torch.zeros(len(paths), dtype=torch.int64))
    source = source.prepared(views, views, workers)
    (batch,) = source.batches([torch.tensor(places)], 3, cut)
    source.close()
    return batch


def in_memory(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).transpose(2, 0, 1).copy())[None]


def write_smooth(folder: Path) -> list[Path]:
    """Waves, longer than what resampling twice would take away."""
    paths = []
    for number, (width, height) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width] / max(height, width)
        waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in ((2, 1), (-1, 2), (0, 3))]
        paths.append(folder / f"{number}.png")
        Image.fromarray((127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize("rotation", [15.0, 90.0, 180.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_files_turned_view_is_that_of_the_same_pixels_in_memory(
    tmp_path: Path, rotation: float, flip: float
) -> None:
    """But for rounding: of files the hull is resized first, to bytes."""
    files, plain = write_smooth(tmp_path), {**PLAIN, "flip": flip, "scale": (0.3, 1.0)}
    turning, papers = MoreViews(SIDE, **plain, rotation=rotation), SimCLRViews(SIDE, **plain)
    found = views_of(turning, batch_of(files, turning, "views", [*range(6)])).views.view(2, 6, -1)
    errors, turns = list[float](), list[float]()
    for place, path in enumerate(files):
        image, index = in_memory(path), torch.tensor([place])
        of_image = turning(image, index, 3), papers(image, index, 3)
        for got, want, unturned in zip(found[:, place], *of_image, strict=True):
            errors.append(float((got - want.flatten()).abs().mean()))
            turns.append(float((got - unturned.flatten()).abs().mean()))
    assert max(errors) < 0.012
    assert sum(errors) < 0.15 * sum(turns)


def test_hulls_are_cut_larger_and_clean_images_are_the_papers(files: list[Path]) -> None:
    views, paper = MoreViews(SIDE, rotation=45), SimCLRViews(SIDE)
    places = [*range(len(files))]
    both = batch_of(files, views, "both", places)
    assert both.images.shape == (6, 3, 3, 34, 34)
    cut = batch_of(files, views, "views", places)
    assert cut.images.equal(both.images[:, :2])
    alone = batch_of(files, views, "clean", places)
    want = batch_of(files, paper, "clean", places)
    assert alone.images.equal(want.images)
    clean = clean_of(paper, paper, want, None).clean
    for batch in (both, alone):
        assert clean_of(views, views, batch, None).clean.equal(clean)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_trace_of_batch_or_workers(files: list[Path], workers: int) -> None:
    views = MoreViews(SIDE, rotation=30, padding=2, vertical_flip=0.5, quarter_turns=True)
    together = views_of(views, batch_of(files, views, "views", [*range(6)], workers)).views
    for place in range(6):
        alone = views_of(views, batch_of(files, views, "views", [place])).views
        assert alone[0].equal(together[place])
        assert alone[1].equal(together[6 + place])


def test_a_padded_view_is_the_clean_image_shifted(files: list[Path]) -> None:
    views = MoreViews(SIDE, **PLAIN, padding=3, flip=0.0)
    batch = batch_of(files, views, "both", [*range(6)])
    clean = clean_of(views, views, batch, None).clean
    first, places = views_of(views, batch).views[:6], views.draw(batch.index, 3, 0).own[:, 4:6]
    padded = torch.nn.functional.pad(clean, (3,) * 4)
    for k, (top, left) in enumerate(places.long().tolist()):
        assert first[k].equal(padded[k, :, top : top + SIDE, left : left + SIDE])


@pytest.mark.parametrize("mode", ["RGB", "L", "F"])
def test_a_box_that_leaves_the_image_is_mirrored_there(mode: str) -> None:
    image = photograph(40, 30, 1).convert(mode)
    pixels = np.asarray(image)
    border = ((6, 6), (9, 9), (0, 0))[: pixels.ndim]
    wide = Image.fromarray(np.pad(pixels, border, mode="reflect"))
    for box in ((-5, -8, 20, 21), (18.5, 25.25, 17, 23.5), (-6, -9, 42, 58), (3, 4, 20, 21)):
        there = (box[0] + 6, box[1] + 9, *box[2:])
        got, want = cut_box(image, box, 1, 16, (0, 0)), cut_box(wide, there, 1, 16, (0, 0))
        assert np.array_equal(np.asarray(got), np.asarray(want))
