"""Rotation by any angle: crop and turn in one resampling, mirrored beyond the image's edges."""

import math

import torch
from torch import Tensor


def hull_share(cos: Tensor, sin: Tensor) -> Tensor:
    """Side of the hull of a turned box, as a share of the box's own side: 1 to 1.42."""
    return cos.abs() + sin.abs()


def largest_share(degrees: float) -> float:
    """The largest `hull_share` of turns by at most so many degrees."""
    most = math.radians(min(degrees, 45.0))
    return math.cos(most) + math.sin(most)


def hulls(box: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Boxes that hold what a turned box shows.

    Args:
        box: `[B, 4]`: top, left, height, width in pixels.
        cos: `[B]`, of the angle.
        sin: `[B]`, of the angle.

    Returns:
        `float64 [B, 4]`, with the same centres. They may leave the image.
    """
    corner, sides = box.double().split(2, 1)
    wide = sides * hull_share(cos, sin).double()[:, None]
    return torch.cat([corner + (sides - wide) / 2, wide], 1)


def inside_hulls(side: int, cos: Tensor, sin: Tensor) -> Tensor:
    """The box in its hull, which has been resized to `side` x `side`: `float32 [B, 4]`."""
    length = side / hull_share(cos, sin)
    corner = (side - length) / 2
    return torch.stack([corner, corner, length, length], 1)


def turned(
    images: Tensor,
    which: Tensor,
    box: Tensor,
    sizes: Tensor,
    cos: Tensor,
    sin: Tensor,
    flip: Tensor,
    size: int,
) -> Tensor:
    """Crops, resized to S x S and turned counterclockwise about their centre, in one resampling.

    The pixel at (x, y) of a view, in shares of its side from its centre, is taken at
    `(x cos - y sin, x sin + y cos)`, in shares of the box's sides from the box's centre: as if the
    whole image had been stretched until the box was square, and turned then. There it is a weighted
    mean with the weights of `core.views.crop.taps`: a triangle along lines and one along columns,
    as wide as two pixels of the image, or two of the view where those are larger. Pixels that a
    turned box has beyond the crop are the image's own; beyond the image's edges it is mirrored,
    without repeating the edge. At scale 1 this is `torchvision.transforms.v2.functional.rotate`,
    bilinear, of the image with reflected padding.

    Nothing depends on a sample's place in the batch.

    Args:
        images: `uint8 [N, C, H, W]`, or `float32` in [0, 1].
        which: `int64 [B]`, the images that are wanted.
        box: `[B, 4]`: top, left, height, width in pixels.
        sizes: `[B, 2]`, height and width of each image, which lies in the top left of `images`.
        cos: `float32 [B]`, of the angle.
        sin: `float32 [B]`, of the angle.
        flip: `bool [B]`, mirror left and right afterwards.
        size: S.

    Returns:
        `float32 [C, B, S, S]` in [0, 1].
    """
    channels, height, width = images.shape[1:]
    place = (torch.arange(size, device=box.device, dtype=torch.float32) + 0.5) / size - 0.5
    y, x = place[None, :, None], torch.where(flip[:, None], -place, place)[:, None]
    cos, sin = cos[:, None, None], sin[:, None, None]
    top, left, tall, wide = box.float()[..., None, None].unbind(1)
    limits = sizes.float()[..., None, None].unbind(1)
    most = (height, width) if not box.is_cpu else (float(tall.max()), float(wide.max()))
    rows = _taps(top + (x * sin + y * cos + 0.5) * tall - 0.5, tall / size, most[0] / size)
    columns = _taps(left + (x * cos - y * sin + 0.5) * wide - 0.5, wide / size, most[1] / size)
    down = [(_mirrored(row, limits[0]) * width, weight) for row, weight in rows]
    across = [(_mirrored(column, limits[1]), weight) for column, weight in columns]
    pixels, first = images.reshape(-1), (which * channels * height * width)[:, None, None]
    colours = [pixels[channel * height * width :] for channel in range(channels)]
    shape = channels, len(box), size, size
    done = torch.zeros(shape, dtype=torch.float32, device=images.device)
    for row, row_weight in down:
        for column, column_weight in across:
            index, weight = first + row + column, row_weight * column_weight
            for plane, colour in zip(done, colours, strict=True):
                plane.add_(colour.take(index).float().mul_(weight))
    return done if images.is_floating_point() else done.div_(255)


def _taps(centre: Tensor, step: Tensor, most: float) -> list[tuple[Tensor, Tensor]]:
    """Pixels around places `[B, S, S]` of a line, and their weights, whose sum is 1.

    Args:
        centre: where pixel i lies at i.
        step: `[B, 1, 1]`, pixels of the line for one of the view.
        most: no step is larger; taps that it adds weigh nothing, and change no bit.
    """
    reach = step.clamp(min=1)
    before = (centre - reach).floor()
    pixels = [before + tap for tap in range(1, math.ceil(2 * max(1.0, most)) + 1)]
    weights = [(1 - (pixel - centre).abs() / reach).clamp_(min=0) for pixel in pixels]
    total = torch.zeros_like(centre)
    for weight in weights:  # one after the other: `sum` goes in an order that depends on the batch
        total += weight
    return [(pixel, weight / total) for pixel, weight in zip(pixels, weights, strict=True)]


def _mirrored(pixel: Tensor, length: Tensor) -> Tensor:
    """Pixels of an endless line as those of one of that length, mirrored at both ends: `int64`."""
    last = length - 1
    return (last - (pixel.remainder(2 * last) - last).abs()).long()
