"""Boxes against torchvision's rule written out, and resampling against torchvision's functional."""

import math

import pytest
import torch
from noise import pictures
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from simclr_pl.core.views.crop import (
    ATTEMPTS,
    DRAWS,
    RATIO,
    centre_boxes,
    random_boxes,
    resampled,
    taps,
)

SIZES = [(32, 32), (28, 28), (8, 8), (4, 4), (375, 500), (500, 333), (17, 90), (1000, 4)]
Box = tuple[int, int, int, int]


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))


def resized_crops(
    images: Tensor, which: Tensor, box: Tensor, flip: Tensor | None, out: int
) -> Tensor:
    """`[B, C, S, S]`, with as few taps as will do."""
    (height, width), (top, left, h, w) = images.shape[-2:], box.unbind(1)
    rows = taps(top, h, None, height, out, int(h.max()))
    columns = taps(left, w, flip, width, out, int(w.max()))
    planes = resampled(images, which, *rows, *columns)
    assert planes.is_contiguous()
    return planes.transpose(0, 1)


def box_reference(u: list[float], height: int, width: int, scale: tuple[float, float]) -> Box:
    """`RandomResizedCrop.get_params` of torchvision, one image, with its random numbers given."""
    area = height * width
    low, high = (math.log(r) for r in RATIO)
    for attempt in range(ATTEMPTS):
        target = area * (scale[0] + (scale[1] - scale[0]) * u[2 * attempt])
        ratio = math.exp(low + (high - low) * u[2 * attempt + 1])
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = math.floor(u[-2] * (height - h + 1)), math.floor(u[-1] * (width - w + 1))
            return top, left, h, w
    if width / height < RATIO[0]:
        w, h = width, round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w, h = round(height * RATIO[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def torchvision_boxes(count: int, height: int, width: int, scale: tuple[float, float]) -> list[Box]:
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count)]


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 0.6), (1.0, 1.0)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_are_those_of_torchvisions_rule(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    u = draws(200)
    want = [box_reference(row, height, width, scale) for row in u.double().tolist()]
    assert random_boxes(u, height, width, scale).tolist() == [list(box) for box in want]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_lie_inside_the_image(height: int, width: int) -> None:
    u = draws(2000)
    u[0], u[1] = 0, 1 - 2**-24  # the ends of what `uniform` gives
    top, left, h, w = random_boxes(u, height, width, (0.08, 1.0)).unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (h >= 1) & (w >= 1)).all())
    assert bool(((top + h <= height) & (left + w <= width)).all())


def test_boxes_keep_the_bounds_of_area_and_ratio() -> None:
    """Up to the rounding of a side to whole pixels, half a pixel of 400."""
    boxes = random_boxes(draws(5000), 400, 400, (0.3, 0.7)).double()
    h, w = boxes[:, 2], boxes[:, 3]
    share, ratio = h * w / 400**2, w / h
    assert 0.3 * 0.99 < float(share.min()) < 0.31
    assert 0.69 < float(share.max()) < 0.7 * 1.01
    assert RATIO[0] * 0.99 < float(ratio.min()) < 0.76
    assert 1.32 < float(ratio.max()) < RATIO[1] * 1.01


@pytest.mark.parametrize(("height", "width"), [(96, 96), (60, 120)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 6000
    ours = random_boxes(draws(count), height, width, (0.08, 1.0)).double()
    theirs = torch.tensor(torchvision_boxes(count, height, width, (0.08, 1.0))).double()
    for name, measure in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom margin": lambda b: height - b[:, 0] - b[:, 2],
        "right margin": lambda b: width - b[:, 1] - b[:, 3],
    }.items():
        # Beyond 0.036 by chance once in a thousand times.
        statistic = ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).statistic
        assert statistic < 0.036, name


def test_every_place_of_a_box_is_possible() -> None:
    boxes = random_boxes(draws(4000), 8, 8, (0.25, 0.25))
    square = boxes[(boxes[:, 2] == 4) & (boxes[:, 3] == 4)]
    assert square[:, 0].unique().tolist() == [0, 1, 2, 3, 4]
    assert square[:, 1].unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("height", "width"), [(20, 200), (200, 20), (21, 300), (10, 10)])
def test_without_a_fitting_box_the_centre_is_cut_as_in_torchvision(height: int, width: int) -> None:
    want = torchvision_boxes(1, height, width, (1.0, 1.0))[0]
    assert random_boxes(draws(5), height, width, (1.0, 1.0)).tolist() == [list(want)] * 5


def test_boxes_of_different_image_sizes_are_those_of_each_image() -> None:
    u = draws(len(SIZES))
    height, width = torch.tensor(SIZES).T
    together = random_boxes(u, height, width, (0.08, 1.0))
    alone = [random_boxes(u[i : i + 1], *SIZES[i], (0.08, 1.0))[0] for i in range(len(SIZES))]
    assert torch.equal(together, torch.stack(alone))


def test_centre_boxes_are_centred_squares() -> None:
    assert centre_boxes(10, 20).tolist() == [[0, 5, 10, 10]]
    assert centre_boxes(256, 256, 0.875).tolist() == [[16, 16, 224, 224]]
    several = centre_boxes(torch.tensor([10, 9, 4]), torch.tensor([7, 30, 4]), 0.5)
    assert several.tolist() == [[3, 1, 4, 4], [2, 13, 4, 4], [1, 1, 2, 2]]


CROPS = {
    "down 256 to 224": ((256, 256), (0, 0, 256, 256), 224),
    "slightly up": ((256, 256), (20, 11, 200, 180), 224),
    "down by a fraction": ((96, 80), (3, 7, 77, 60), 32),
    "down by much": ((300, 200), (1, 0, 299, 200), 24),
    "up by much": ((32, 32), (5, 9, 4, 6), 32),
    "up from one pixel": ((16, 16), (15, 0, 1, 1), 8),
    "tall and flat": ((60, 90), (0, 40, 60, 3), 28),
    "same size": ((28, 28), (0, 0, 28, 28), 28),
    "down in one direction, up in the other": ((64, 64), (10, 10, 50, 13), 32),
}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shape", "box", "out"), CROPS.values(), ids=CROPS.keys())
def test_resampling_is_torchvisions_antialiased_resized_crop(
    shape: tuple[int, int], box: Box, out: int, channels: int, flip: bool
) -> None:
    image = pictures(1, channels, *shape)
    boxes, first = torch.tensor([box]), torch.tensor([0])
    got = resized_crops(image, first, boxes, torch.tensor([flip]), out)
    want = TF.resized_crop(image / 255, *box, [out, out], antialias=True)
    want = TF.horizontal_flip(want) if flip else want
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    if not flip:
        assert torch.equal(resized_crops(image, first, boxes, None, out), got)


def test_taps_lie_in_the_box_and_their_weights_sum_to_one() -> None:
    boxes = random_boxes(draws(200), 50, 50, (0.01, 1.0))
    start, length = boxes[:, :1], boxes[:, 2:3]
    for out, most in ((7, 15), (50, 2), (64, 2)):
        pixel, weights = taps(start[:, 0], length[:, 0], None, 50, out, 50)
        assert pixel.shape == weights.shape == (most, 200, out)
        torch.testing.assert_close(weights.sum(0), torch.ones(200, out), atol=1e-6, rtol=0)
        assert float(weights.min()) == 0
        outside = (pixel < start) | (pixel >= start + length)
        assert float(weights[outside].abs().max()) == 0
        assert 0 <= int(pixel.min()) <= int(pixel.max()) < 50  # to be read, even for no weight


def test_the_longest_box_of_a_batch_changes_no_bit_of_the_others() -> None:
    """It decides how many taps there are: all but two weigh nothing in a box that gets larger."""
    images = pictures(2, 3, 64, 64)
    boxes = torch.tensor([[5, 9, 20, 30], [0, 0, 64, 64]])
    both = resized_crops(images, torch.arange(2), boxes, None, 32)
    for i in range(2):
        alone = resized_crops(images, torch.tensor([i]), boxes[i : i + 1], None, 32)
        assert torch.equal(alone[0], both[i])


def test_each_sample_has_its_own_box() -> None:
    images = pictures(20, 3, 40, 30)
    which = torch.arange(40).roll(3) % 20  # an image may be wanted more than once
    boxes = random_boxes(draws(40), 40, 30, (0.08, 1.0))
    flip = torch.arange(40) % 2 == 0
    got = resized_crops(images, which, boxes, flip, 16)
    for i in range(40):
        pixels = images[which[i]] / 255
        want = TF.resized_crop(pixels, *boxes[i].tolist(), [16, 16], antialias=True)
        want = TF.horizontal_flip(want) if flip[i] else want
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=0)
