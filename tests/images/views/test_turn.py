"""Rotation: a slow literal reference, and torchvision's where nothing is resized."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from noise import pictures
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from simclr_pl.images.views.turn import hull_share, hulls, inside_hulls, largest_share, turned

ANGLES = torch.tensor([0.0, 7.5, -30.0, 45.0, 90.0, -135.0, 180.0, 61.3])
EIGHT = len(ANGLES)


def turn(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine."""
    angle = torch.deg2rad(degrees.double())
    return angle.cos().float(), angle.sin().float()


def mirrored(pixel: int, length: int) -> int:
    """Steps from pixel to pixel, and turns round at both ends."""
    place, step = 0, 1
    for _ in range(abs(pixel)):
        if not 0 <= place + step < length:
            step = -step
        place += step
    return place


def slow(image: Tensor, box: list[int], degrees: float, flip: bool, size: int) -> Tensor:
    """One view, a pixel after the other, as `turned` says it: `[C, H, W]` to `[C, S, S]`."""
    top, left, tall, wide = box
    angle = math.radians(degrees)
    done = torch.zeros(len(image), size, size, dtype=torch.float64)
    reach_y, reach_x = max(1.0, tall / size), max(1.0, wide / size)
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) / size - 0.5, (j + 0.5) / size - 0.5
            x = -x if flip else x
            row = top + tall / 2 + (x * math.sin(angle) + y * math.cos(angle)) * tall - 0.5
            column = left + wide / 2 + (x * math.cos(angle) - y * math.sin(angle)) * wide - 0.5
            total = 0.0
            for r in range(math.floor(row - reach_y), math.ceil(row + reach_y) + 1):
                for c in range(math.floor(column - reach_x), math.ceil(column + reach_x) + 1):
                    weight = max(0.0, 1 - abs(r - row) / reach_y)
                    weight *= max(0.0, 1 - abs(c - column) / reach_x)
                    there = mirrored(r, image.shape[1]), mirrored(c, image.shape[2])
                    done[:, i, j] += weight * image[:, there[0], there[1]]
                    total += weight
            done[:, i, j] /= total
    return done.float() / 255


BOXES = torch.tensor(
    [
        *([0, 0, 12, 14], [3, 2, 6, 8], [0, 9, 4, 5], [5, 0, 7, 6]),
        *([1, 1, 10, 9], [8, 10, 4, 4], [0, 0, 12, 9], [2, 3, 5, 4]),
    ]
)


@pytest.mark.parametrize("size", [5, 9, 12])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_turned_crop_is_the_slow_definition(size: int, channels: int) -> None:
    images, which = pictures(3, channels, 12, 14), torch.arange(EIGHT) % 3
    flip = torch.arange(EIGHT) % 2 == 1
    sizes = torch.tensor([12, 14]).expand(EIGHT, 2)
    got = turned(images, which, BOXES, sizes, *turn(ANGLES), flip, size)
    assert got.shape == (channels, EIGHT, size, size)
    assert got.dtype == torch.float32
    for k in range(EIGHT):
        mine = images[which[k]], BOXES[k].tolist(), float(ANGLES[k]), bool(flip[k]), size
        torch.testing.assert_close(got[:, k], slow(*mine), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (7, 3), (14, 14)])
def test_at_scale_one_it_is_torchvisions_rotation_of_the_image_with_reflected_padding(
    top: int, left: int
) -> None:
    size, wide = 16, 20
    image = pictures(1, 3, 30, 30)
    padded = F.pad(image.float() / 255, (wide,) * 4, mode="reflect")
    for degrees in ANGLES.tolist():
        centre = [left + size / 2 + wide, top + size / 2 + wide]
        want = TF.rotate(padded, degrees, InterpolationMode.BILINEAR, center=centre)
        want = TF.crop(want, top + wide, left + wide, size, size)
        how = turn(torch.tensor([degrees]))
        box, sizes = torch.tensor([[top, left, size, size]]), torch.tensor([[30, 30]])
        got = turned(image, torch.tensor([0]), box, sizes, *how, torch.tensor([False]), size)
        torch.testing.assert_close(got[:, 0], want[0], atol=2e-4, rtol=0)


def test_what_is_not_turned_is_the_crop_but_for_the_boxs_edge() -> None:
    """The paper's crop sees nothing beyond its box; a turned one sees the image's own pixels."""
    image, box = pictures(1, 3, 40, 50), torch.tensor([[4, 5, 32, 24]])
    nothing = torch.ones(1), torch.zeros(1), torch.tensor([False])
    sizes = torch.tensor([[40, 50]])
    got = turned(image, torch.tensor([0]), box, sizes, *nothing, 16)[:, 0]
    want = TF.resized_crop(image[0] / 255, 4, 5, 32, 24, [16, 16], antialias=True)
    torch.testing.assert_close(got[:, 1:-1, 1:-1], want[:, 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_images_that_lie_in_a_corner_are_mirrored_at_their_own_edges() -> None:
    small = pictures(EIGHT, 3, 12, 14)
    wide = F.pad(small, (0, 9, 0, 5), value=255)
    rest = torch.arange(EIGHT), BOXES, torch.tensor([12, 14]).expand(EIGHT, 2), *turn(ANGLES)
    flip = torch.zeros(EIGHT, dtype=torch.bool)
    got = turned(wide, *rest, flip, 10)
    assert got.equal(turned(small, *rest, flip, 10))


def test_floats_in_0_to_1_are_turned_as_their_bytes_are() -> None:
    images = pictures(EIGHT, 2, 12, 14)
    rest: Any = torch.arange(EIGHT), BOXES, torch.tensor([12, 14]).expand(EIGHT, 2), *turn(ANGLES)
    flip = torch.zeros(EIGHT, dtype=torch.bool)
    got = turned(images / 255, *rest, flip, 10)
    torch.testing.assert_close(got, turned(images, *rest, flip, 10), atol=1e-6, rtol=0)


def test_a_hull_holds_the_turned_box_and_no_more() -> None:
    cos, sin = turn(ANGLES)
    found = hulls(BOXES, cos, sin)
    for box, hull, degrees in zip(BOXES.double(), found, ANGLES.double(), strict=True):
        a = torch.deg2rad(degrees)
        corners = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]).double()
        y = corners[:, 1] * a.sin() + corners[:, 0] * a.cos()
        x = corners[:, 1] * a.cos() - corners[:, 0] * a.sin()
        centre = box[:2] + box[2:] / 2
        ends = centre + torch.stack([y, x], 1) * box[2:]
        torch.testing.assert_close(hull[:2], ends.amin(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(hull[:2] + hull[2:], ends.amax(0), atol=1e-5, rtol=0)
    share = hull_share(cos, sin)
    torch.testing.assert_close(inside_hulls(30, cos, sin)[:, 2] * share, torch.full((EIGHT,), 30.0))


@pytest.mark.parametrize("most", [0.0, 10.0, 45.0, 80.0, 180.0])
def test_no_hull_is_larger_than_the_largest(most: float) -> None:
    shares = hull_share(*turn(torch.linspace(-most, most, 2001)))
    assert float(shares.max()) == pytest.approx(largest_share(most), abs=1e-5)
