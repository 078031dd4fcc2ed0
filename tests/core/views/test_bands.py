"""Colours of images that are neither gray nor RGB: each band has brightness and contrast."""

import math
from typing import Any

import pytest
import torch
from noise import pictures
from plain_views import OFF
from torch import Tensor

from simclr_pl import SimCLRViews
from simclr_pl.core.views import color, fused
from simclr_pl.core.views.color import BRIGHTNESS, CONTRAST, Jitter


def slow(image: Tensor, how: Jitter, gray: bool, place: int) -> Tensor:
    """One image `[C, H, W]`, one band and one operation after the other."""
    bands = [band.clone() for band in image.double()]
    for operation in how.order[place].tolist() if how.on[place] else []:
        for number, band in enumerate(bands):
            factor = float(how.factor[place, operation, number])
            if operation == BRIGHTNESS:
                bands[number] = (factor * band).clamp(0, 1)
            if operation == CONTRAST:
                bands[number] = (factor * band + (1 - factor) * band.mean()).clamp(0, 1)
    mean = sum(bands) / len(bands)
    return torch.stack([mean if gray else band for band in bands]).float()


def plain(channels: int, **options: Any) -> dict[str, Any]:
    return {**OFF, "mean": (0.0,) * channels, "std": (1.0,) * channels, **options}


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_a_views_bands_are_the_slow_definitions(channels: int) -> None:
    images, index = pictures(48, channels, 12, 12), torch.arange(48)
    views = SimCLRViews(12, **plain(channels, jitter=1.0, grayscale=0.3))
    for view, got in enumerate(views(images, index, 2)):
        how = views.draw(index, 2, view)
        assert how.jitter.factor.shape == (48, 4, channels)
        for k in range(48):
            want = slow(images[k] / 255, how.jitter, bool(how.gray[k]), k)
            torch.testing.assert_close(got[k], want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [2, 13])
def test_accelerators_way_is_the_same(channels: int) -> None:
    planes = torch.rand(channels, 48, 9, 11, generator=torch.Generator().manual_seed(0))
    drawn = SimCLRViews(16, **plain(channels, jitter=1.0, grayscale=0.4)).draw(
        torch.arange(48), 0, 0
    )
    mean, std = torch.rand(channels, 1, 1), torch.rand(channels, 1, 1) + 0.5
    got = fused.recoloured(planes, drawn.jitter, drawn.gray, mean, std)
    order = color.place_of_hue(drawn.jitter).argsort(stable=True)
    sorted_ = Jitter(*(part[order] for part in drawn.jitter))
    want = color.to_grayscale(color.jitter(planes[:, order], sorted_), drawn.gray[order])
    want = (want.transpose(0, 1)[order.argsort()] - mean) / std
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_factors_are_each_bands_own() -> None:
    index, strength = torch.arange(20_000), 0.5
    factor = SimCLRViews(16, **plain(5, jitter=strength)).draw(index, 1, 0).jitter.factor
    for operation in (BRIGHTNESS, CONTRAST):
        bands = factor[:, operation]
        even = torch.stack([torch.histc(band, 10, 0.6, 1.4) for band in bands.T]) / len(index)
        torch.testing.assert_close(even, torch.full((5, 10), 0.1), atol=0.015, rtol=0)
    columns = factor[:, :2].flatten(1).T.double()
    correlation = torch.corrcoef(columns).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / math.sqrt(len(index))


def test_other_draws_do_not_depend_on_the_bands() -> None:
    index = torch.arange(300)
    rgb = SimCLRViews(16).draw(index, 1, 1)
    bands = SimCLRViews(16, **plain(13, jitter=1.0)).draw(index, 1, 1)
    assert rgb.crop.equal(bands.crop)
    assert rgb.sigma.equal(bands.sigma)
    assert rgb.jitter.order.equal(bands.jitter.order)


@pytest.mark.parametrize(("channels", "share"), [(3, 0.2), (2, 0.0), (13, 0.0)])
def test_colour_is_dropped_of_rgb_alone_unless_it_is_asked_for(channels: int, share: float) -> None:
    options = plain(channels)
    del options["grayscale"]
    assert SimCLRViews(16, **options).grayscale == share
    assert SimCLRViews(16, **options, grayscale=0.5).grayscale == 0.5


@pytest.mark.parametrize("channels", [2, 13])
def test_a_sample_has_the_same_bits_in_any_batch(channels: int) -> None:
    images, index = pictures(40, channels, 24, 20), torch.arange(40) * 3 + 1
    statistics = {"mean": (0.4,) * channels, "std": (0.2,) * channels}
    views = SimCLRViews(16, **statistics, grayscale=0.3)
    everything = views(images, index, 4)
    for i in range(40):
        alone = views(images[i : i + 1], index[i : i + 1], 4)
        assert alone[0][0].equal(everything[0][i])
        assert alone[1][0].equal(everything[1][i])
