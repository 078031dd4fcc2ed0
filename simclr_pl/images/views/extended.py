"""The paper's views with further operations: turned, padded, mirrored top and bottom, solarised.

They are for images without an upright, as from satellites and microscopes, and for recipes that
other papers have published. All are off unless they are asked for; with all off the views are the
paper's to the bit.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_pl.core.errors import check
from simclr_pl.core.randomness import uniform
from simclr_pl.core.views.crop import CLEAN_SHARE, centre_boxes
from simclr_pl.core.views.parameters import ViewParameters
from simclr_pl.core.views.simclr import SCALE, SimCLRViews
from simclr_pl.images.views.orient import reoriented, shifted
from simclr_pl.images.views.turn import hulls, inside_hulls, largest_share, turned

STREAM = 0x6D6F7265
"""Apart from the paper's draws, which are those of streams 0, 1, ...: none of them moves."""

THRESHOLD = 0.5
"""Pixels at least as bright are inverted where a view is solarised (BYOL: 128 of 255)."""


class Own(NamedTuple):
    """What is random about one view of each image, beyond the paper's.

    Attributes:
        vertical: `[B]`, 1 where a view is mirrored top and bottom, else 0.
        quarters: `[B]`, quarter turns, 0 to 3.
        cos: `[B]`, of the angle of rotation.
        sin: `[B]`, likewise.
        top: `[B]`, first line of the window in the padded image, in pixels.
        left: `[B]`, its first column.
        solarise: `[B]`, 1 where a view is solarised, else 0.
    """

    vertical: Tensor
    quarters: Tensor
    cos: Tensor
    sin: Tensor
    top: Tensor
    left: Tensor
    solarise: Tensor


class MoreViews(SimCLRViews):
    """SimCLR's augmentation and more: `--data.views extended --data.views.rotation 15`.

    In this order: crop, or padded window (with the rotation), flip, vertical flip, quarter turns,
    jitter, grayscale, blur, solarise. The clean images of evaluation are the paper's.

    Args:
        image_size: side S of a view, in pixels.
        vertical_flip: probability of mirroring top and bottom.
        quarter_turns: turn each view by 0, 90, 180 or 270 degrees, all as likely.
        rotation: turn each view by an angle of at most so many degrees to either side, 0 to 180,
            about the crop's centre; beyond the image's edges it is mirrored.
        padding: in place of the random resized crop, the image as evaluation sees it, S x S pixels,
            is padded with so many black ones, and a window of S x S is cut (CIFAR's usual view).
        solarise: probability of inverting pixels of 0.5 and above (BYOL: 0.2, of one view).
        scale: as `SimCLRViews` has it, and what follows.
        flip: likewise.
        jitter: likewise.
        grayscale: likewise.
        blur: likewise.
        mean: likewise.
        std: likewise.
        seed: likewise.
        compiled: likewise; rotation itself is not compiled.
        count: likewise.

    Raises:
        UserError: a value out of its range; `padding` beside a `scale`, which it has no use for.
    """

    def __init__(
        self,
        image_size: int,
        *,
        vertical_flip: float = 0.0,
        quarter_turns: bool = False,
        rotation: float = 0.0,
        padding: int = 0,
        solarise: float = 0.0,
        scale: tuple[float, float] = SCALE,
        flip: float = 0.5,
        jitter: float = 1.0,
        grayscale: float | None = None,
        blur: float = 0.5,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        seed: int = 0,
        compiled: bool = False,
        count: int = 2,
    ) -> None:
        super().__init__(
            image_size, scale=scale, flip=flip, jitter=jitter, grayscale=grayscale, blur=blur,
            mean=mean, std=std, seed=seed, compiled=compiled, count=count,
        )  # fmt: skip
        option = "data.views"
        for name, chance in (("vertical_flip", vertical_flip), ("solarise", solarise)):
            is_share = _is_number(chance) and 0 <= chance <= 1
            check(is_share, f"{option}.{name}", chance, "a probability, from 0 to 1")
        check(isinstance(quarter_turns, bool), f"{option}.quarter_turns", quarter_turns, "a bool")
        is_angle = _is_number(rotation) and 0 <= rotation <= 180
        check(is_angle, f"{option}.rotation", rotation, "degrees to either side, from 0 to 180")
        pixels = f"whole pixels, from 0 to below the view's {image_size}"
        is_whole = _is_number(padding) and isinstance(padding, int) and 0 <= padding < image_size
        check(is_whole, f"{option}.padding", padding, pixels)
        only = f"left at {[*SCALE]}: {option}.padding takes the place of the resized crop"
        check(not padding or tuple(scale) == SCALE, "data.scale", [*scale], only)
        self.vertical_flip, self.quarter_turns, self.rotation = (
            vertical_flip, quarter_turns, rotation,
        )  # fmt: skip
        self.padding, self.solarise = padding, solarise
        self.cut_size = math.ceil(image_size * largest_share(rotation))
        """Side of the crops that workers cut from image files: the hull of a turned view."""

    def draw(self, index: Tensor, epoch: int, view: int | Tensor) -> ViewParameters:
        """What is random about a view: the paper's, and behind it in `own` the columns of `Own`."""
        how = super().draw(index, epoch, view)
        there = how.flip.device
        stream = STREAM + (view.to(there) if isinstance(view, Tensor) else view)
        u = uniform(self.seed, epoch, index.to(there), stream, 6)
        vertical, quarter, turn, top, left, solarise = u.unbind(1)
        # In float64, so that the rounded numbers don't depend on a sample's place in the batch.
        angle = (2 * turn.double() - 1) * math.radians(self.rotation)
        places = 2 * self.padding + 1
        own = Own(
            vertical < self.vertical_flip, (quarter * 4 * self.quarter_turns).floor(),
            angle.cos(), angle.sin(), (top * places).floor(), (left * places).floor(),
            solarise < self.solarise,
        )  # fmt: skip
        return how._replace(own=torch.stack([column.float() for column in own], 1))

    def boxes(self, how: ViewParameters, height: Tensor | int, width: Tensor | int) -> Tensor:
        """Crop boxes, with the images' sizes behind: `int64 [B, 6]`, for images of those sizes.

        With `padding` they are the clean images' boxes.
        """
        sides = []
        for side in (height, width):  # a number is filled in: copying it would be waited for
            filled = torch.full_like(how.flip, 1, dtype=torch.int64)
            sides.append(filled.mul_(side.to(filled) if isinstance(side, Tensor) else side))
        size = torch.stack(sides, 1)
        if self.padding:
            share = CLEAN_SHARE if isinstance(height, Tensor) else 1.0
            box = centre_boxes(size[:, 0], size[:, 1], share)
        else:
            box = super().boxes(how, height, width)
        return torch.cat([box, size], 1)

    def hulls(self, how: ViewParameters, height: Tensor, width: Tensor) -> Tensor:
        """What workers cut from image files, to be turned here: `[B, 4]`.

        With rotation the hulls of the turned boxes, which may leave the image, where they are
        mirrored; else the boxes themselves.
        """
        own, box = Own(*how.own.unbind(1)), self.boxes(how, height, width)[:, :4]
        return hulls(box, own.cos, own.sin) if self.rotation else box

    def cut(
        self, images: Tensor, which: Tensor, view: Tensor, box: Tensor, how: ViewParameters,
        *, mixed: bool,
    ) -> Tensor:  # fmt: skip
        """The paper's crop and flip, and what else moves pixels: `float [C, B, S, S]`."""
        own, flip = Own(*how.own.unbind(1)), how.flip
        if self.padding:  # mirrored behind
            how = how._replace(flip=torch.zeros_like(flip))
        if self.rotation:
            box, sizes = box.split([4, 2], 1)
            if images.dim() == 5:
                which, images = which * images.shape[1] + view, images.flatten(0, 1)
                box = inside_hulls(images.shape[-1], own.cos, own.sin)
                sizes = torch.full_like(sizes, images.shape[-1])
            turn = own.cos, own.sin, how.flip, self.image_size
            planes = turned(images, which, box, sizes, *turn)
        else:
            planes = super().cut(images, which, view, box[:, :4], how, mixed=mixed)
        if self.padding:
            planes = shifted(planes, self.padding, own.top, own.left, flip)
        if self.vertical_flip or self.quarter_turns:
            planes = reoriented(planes, own.vertical > 0, own.quarters)
        return planes

    def recolour(self, planes: Tensor, how: ViewParameters) -> Tensor:
        """Everything behind the crop: `float [C, B, S, S]` to `[B, C, S, S]`, its own memory."""
        images = super().recolour(planes, how)
        if not self.solarise:
            return images
        # They are normalised by now, and inverting wants the image's own scale. (At the threshold a
        # pixel is its own inverse: no harm is done by rounding that moves it to the other side.)
        mean, std = self._statistics(images.device)
        unit, on = images * std + mean, Own(*how.own.unbind(1)).solarise > 0
        inverted = (1 - unit - mean) / std
        return torch.where(on[:, None, None, None] & (unit >= THRESHOLD), inverted, images)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
