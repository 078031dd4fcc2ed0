"""Mean and standard deviation of each channel, and channels without contrast."""

import pytest
import torch
from arrays import array
from noise import pixels

from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.datasets import load
from simclr_pl.images.workers.images import ImageFiles


def test_statistics_are_mean_and_standard_deviation_of_each_channel() -> None:
    images = torch.from_numpy(pixels(50, 3, 9, 9)) // torch.tensor([1, 2, 4])[:, None, None]
    source = ArrayImages(images.to(torch.uint8), torch.zeros(50, dtype=torch.int64))
    mean, std, _ = source.statistics()
    x = source.images.double() / 255
    assert mean == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=6e-5)
    assert std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), abs=6e-5)


def test_statistics_of_digits() -> None:
    train = array(load("digits", "unused").train)
    mean, std, _ = train.statistics()
    x = train.images.double() / 255
    assert mean == pytest.approx([float(x.mean())], abs=6e-5)
    assert std == pytest.approx([float(x.std(correction=0))], abs=6e-5)


def coloured(count: int, *levels: int) -> ArrayImages:
    """Noise in each channel, as strong as its level says."""
    images = torch.from_numpy(pixels(count, len(levels), 16, 16))
    faded = images * torch.tensor(levels)[:, None, None] // 255
    return ArrayImages(faded.to(torch.uint8), torch.zeros(count))


def test_a_channel_without_contrast_is_divided_by_the_strongest_ones_deviation() -> None:
    got = coloured(50, 255, 200, 0).statistics()
    assert got.empty == (2,)
    assert got.mean[2] == 0
    assert got.std == pytest.approx((0.291, 0.228, got.std[0]), abs=5e-4)
    # What a JPEG file leaves in an empty channel is no contrast either; a faint colour is.
    assert coloured(50, 255, 200, 3).statistics().empty == (2,)
    assert coloured(50, 255, 200, 10).statistics().empty == ()


def test_contrast_is_measured_against_other_colours_alone() -> None:
    # Masks of 0 and 1, and a faint channel among five, which jitter does not mix.
    mask = ArrayImages(coloured(50, 255).images.gt(127).byte(), torch.zeros(50))
    assert mask.statistics() == ((0.002,), (0.002,), ())
    std, empty = coloured(50, 255, 255, 255, 255, 2).statistics()[1:]
    assert empty == ()
    assert std[4] < 0.01 * std[0]


@pytest.mark.parametrize("count", [4, 1])
def test_a_set_without_any_contrast_is_divided_by_one(count: int) -> None:
    source = ArrayImages(torch.full((count, 3, 8, 8), 51, dtype=torch.uint8), torch.zeros(count))
    assert source.statistics() == ((0.2,) * 3, (1.0,) * 3, (0, 1, 2))


def test_views_of_an_empty_channel_are_as_large_as_those_of_others() -> None:
    source = coloured(64, 255, 255, 0)
    mean, std, _ = source.statistics()
    views = SimCLRViews(16, jitter=1.0, mean=mean, std=std)
    both = torch.cat(views(source.images, torch.arange(64), 0))
    assert both[:, 2].abs().max() <= 1 / min(std[:2])
    assert 0 < both[:, 2].std() < 2 * both[:, :2].std()


def test_statistics_of_files_are_imagenets() -> None:
    mean, std, _ = ImageFiles([], torch.zeros(0)).statistics()
    assert mean == (0.485, 0.456, 0.406)
    assert std == (0.229, 0.224, 0.225)
