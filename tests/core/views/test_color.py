"""Colour operations against torchvision's functional, sample by sample."""

import itertools

import pytest
import torch
from plain_views import ADJUST
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl.core.views.color import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Jitter,
    jitter,
    luma,
    place_of_hue,
    shift_hue,
    to_grayscale,
)
from simclr_pl.core.views.color import ORDERS as ORDERED

ORDERS = torch.tensor(ORDERED)
NAMES = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}
FACTORS = torch.tensor([0.0, 0.2, 0.7, 1.0, 1.3, 1.8, 3.0])
TURNS = torch.tensor([-0.5, -0.2, -0.01, 0.0, 0.1, 0.2, 0.5])


def pictures(count: int, channels: int = 3, side: int = 17, seed: int = 0) -> Tensor:
    """Random pixels, and in the first rows what is special in HSV: pure colours and grays."""
    images = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=channels)))[:17].T
    images[:, :, 0, : corners.shape[1]] = corners
    images[:, :, 1] = images[:, :1, 1]
    return images


def only(operation: int, factors: Tensor) -> Jitter:
    """A jitter in which only one operation does anything."""
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(factors), 1)
    neutral[:, operation] = factors
    order = ORDERS[torch.arange(len(factors)) * 5 % len(ORDERS)]
    return Jitter(torch.ones(len(factors), dtype=torch.bool), order, neutral)


def random_jitter(count: int, seed: int = 0) -> Jitter:
    u = torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))
    factor = torch.cat([2 * u[:, :3], u[:, 3:4] - 0.5], 1)
    return Jitter(u[:, 4] < 0.8, ORDERS[torch.arange(count) % len(ORDERS)], factor)


def jittered(images: Tensor, how: Jitter) -> Tensor:
    """`jitter` of images `[B, C, H, W]` in any order."""
    order = place_of_hue(how).argsort(stable=True)
    planes = images[order].transpose(0, 1).contiguous()
    got = jitter(planes, Jitter(*(part[order] for part in how)))
    assert got is planes
    return got.transpose(0, 1)[order.argsort()]


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """`shift_hue` of images `[B, 3, H, W]`."""
    return shift_hue(images.transpose(0, 1).clone(), turns).transpose(0, 1)


def reference(image: Tensor, order: Tensor, factor: Tensor) -> Tensor:
    """One sample, one operation of torchvision after the other."""
    for operation in order.tolist():
        image = ADJUST[operation](image, float(factor[operation]))
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", NAMES.values(), ids=NAMES.keys())
def test_each_operation_is_torchvisions(operation: int, channels: int) -> None:
    factors = TURNS if operation == HUE else FACTORS
    images = pictures(len(factors), channels)
    got = jittered(images, only(operation, factors))
    for image, factor, mine in zip(images, factors.tolist(), got, strict=True):
        want = ADJUST[operation](image, factor)
        torch.testing.assert_close(mine, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions_in_every_order(channels: int) -> None:
    images, how = pictures(72, channels), random_jitter(72)
    assert 0 < int(how.on.sum()) < 72
    got = jittered(images, how)
    for i in range(72):
        want = reference(images[i], how.order[i], how.factor[i]) if how.on[i] else images[i]
        torch.testing.assert_close(got[i], want, atol=1e-4, rtol=0)


def test_orders_are_the_24_permutations_and_matter() -> None:
    assert sorted(map(tuple, ORDERS.tolist())) == sorted(itertools.permutations(range(4)))
    images = pictures(1).expand(24, -1, -1, -1).clone()
    factor = torch.tensor([1.5, 0.5, 1.7, 0.2]).expand(24, 4)
    got = jittered(images, Jitter(torch.ones(24, dtype=torch.bool), ORDERS, factor))
    assert len({tuple(image.flatten().tolist()) for image in got}) > 12


def test_samples_that_are_off_keep_their_bits() -> None:
    images = pictures(12)
    how = random_jitter(12)._replace(on=torch.arange(12) % 3 == 0)
    got = jittered(images, how)
    assert torch.equal(got[~how.on], images[~how.on])
    assert not torch.equal(got[how.on], images[how.on])
    assert torch.equal(jittered(images, how._replace(on=torch.zeros(12).bool())), images)


def test_a_samples_colours_do_not_depend_on_its_batch() -> None:
    images, how = pictures(48, side=33), random_jitter(48)
    together = jittered(images, how)
    backwards = jittered(images.flip(0), Jitter(*(part.flip(0) for part in how)))
    assert torch.equal(backwards.flip(0), together)
    for i in range(48):
        alone = jittered(images[i : i + 1], Jitter(*(part[i : i + 1] for part in how)))
        assert torch.equal(alone[0], together[i])


def test_colours_stay_in_range() -> None:
    got = jittered(pictures(240), random_jitter(240, seed=1))
    assert float(got.min()) >= 0
    assert float(got.max()) <= 1


def test_hue_turns_red_to_green_to_blue_and_full_circle() -> None:
    red, green, blue = torch.eye(3)[:, :, None, None].unbind()
    third = torch.tensor([1 / 3])
    torch.testing.assert_close(turned(red[None], third)[0], green, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(green[None], third)[0], blue, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(blue[None], third)[0], red, atol=1e-5, rtol=0)
    images = pictures(2)
    half = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(turned(turned(images, half), half), images, atol=1e-5, rtol=0)


def test_hue_keeps_value_and_chroma() -> None:
    images = pictures(7)
    got = turned(images, TURNS)
    torch.testing.assert_close(got.amax(1), images.amax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.amin(1), images.amin(1), atol=1e-6, rtol=0)


def test_hue_of_values_above_one_by_rounding_is_as_good() -> None:
    """Resampling weights sum to 1 but for a last bit."""
    images = pictures(7)
    images[images == 1] = 1 + 1e-6
    got = turned(images, TURNS)
    want = torch.stack([TF.adjust_hue(i, t) for i, t in zip(images, TURNS.tolist(), strict=True)])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_grayscale_is_torchvisions_where_it_is_on() -> None:
    images = pictures(9)
    on = torch.arange(9) % 2 == 0
    got = to_grayscale(images.transpose(0, 1).clone(), on).transpose(0, 1)
    want = TF.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(got[on], want[on], atol=1e-4, rtol=0)
    assert torch.equal(got[~on], images[~on])
    assert torch.equal(got[on][:, 0], got[on][:, 2])


def test_grayscale_leaves_one_channel_alone() -> None:
    planes = pictures(4, channels=1).transpose(0, 1)
    assert torch.equal(to_grayscale(planes.clone(), torch.ones(4).bool()), planes)
    assert torch.equal(luma(planes), planes[0])
