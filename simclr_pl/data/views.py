"""Two random views of each image of a batch, all of them at once, on the device.

The operations and their order are the paper's (appendix A): random resized crop, flip, colour
jitter, grayscale, Gaussian blur. What is random about sample i is `uniform(seed, epoch, i, view)`,
so that views don't depend on batch, rank, worker or device. (The draws are the same bits
everywhere; the pixels made from them are the same bits for any batch on one machine, and agree
between devices to float32 rounding.)
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simclr_pl.data import color
from simclr_pl.data.crop import (
    DRAWS,
    apply_separable,
    centre_boxes,
    random_boxes,
    resampling_matrix,
)
from simclr_pl.errors import UserError
from simclr_pl.randomness import uniform

JITTER_CHANCE = 0.8
"""How often colours are jittered (the paper's appendix A)."""

SIGMA = (0.1, 2.0)
"""Bounds of the blur's standard deviation, in pixels (the paper's appendix A)."""


class ViewParameters(NamedTuple):
    """What is random about one view of each image.

    Attributes:
        crop: `[B, DRAWS]`, uniform numbers from which `random_boxes` cuts.
        flip: `bool [B]`, mirror left and right.
        jitter: brightness, contrast, saturation and hue.
        gray: `bool [B]`, drop colour.
        blur: `bool [B]`, blur.
        sigma: `float [B]`, the blur's standard deviation in pixels.
    """

    crop: Tensor
    flip: Tensor
    jitter: color.Jitter
    gray: Tensor
    blur: Tensor
    sigma: Tensor


class SimCLRViews(nn.Module):
    """SimCLR's augmentation, batched, as a pure function of (seed, epoch, sample index, view).

    Source: Chen et al. 2020, appendix A; google-research/simclr `data_util.py`. Each operation
    agrees with `torchvision.transforms.v2.functional` on float images.

    Args:
        image_size: side S of a view, in pixels.
        scale: bounds of a crop's area, as a share of the image's.
        flip: probability of mirroring left and right.
        jitter: the paper's strength s, 0 to 2.5: factors within 0.8s of 1, hue within 0.2s; p 0.8.
        grayscale: probability of dropping colour.
        blur: probability of Gaussian blur, with a kernel of a tenth of the image.
        mean: of each channel, on a scale of 0 to 1.
        std: of each channel, likewise.
        seed: the run's seed.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self,
        image_size: int,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        jitter: float = 1.0,
        grayscale: float = 0.2,
        blur: float = 0.5,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(image_size, scale, flip, jitter, grayscale, blur, mean, std)
        self.image_size = image_size
        self.scale = scale
        self.flip, self.jitter, self.grayscale, self.blur = flip, jitter, grayscale, blur
        self.seed = seed
        self.register_buffer("mean", _channels(mean), persistent=False)
        self.register_buffer("std", _channels(std), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Makes two views.

        Args:
            images: `uint8 [B, C, H, W]`; or `uint8 [B, 2, C, S, S]` where a worker has
                already cut both views' boxes.
            index: `int64 [B]`, each image's place in its split.
            epoch: the epoch, from 0.

        Returns:
            Two tensors `float32 [B, C, S, S]`, normalised.
        """
        return self.one(images, index, epoch, 0), self.one(images, index, epoch, 1)

    @torch.no_grad()
    def one(self, images: Tensor, index: Tensor, epoch: int, view: int = 0) -> Tensor:
        """Makes the first of the two views, or the second: `float32 [B, C, S, S]`."""
        with torch.autocast(images.device.type, enabled=False):
            return self._view(images, self.draw(index, epoch, view), view)

    @torch.no_grad()
    def clean(self, images: Tensor) -> Tensor:
        """The central square, normalised: `uint8 [B, C, H, W]` to `float [B, C, S, S]`."""
        height, width = images.shape[-2:]
        pixels = images.float().div_(255)
        if height != self.image_size or width != self.image_size:
            box = centre_boxes(height, width).to(images.device).expand(images.shape[0], 4)
            pixels = self._cut(pixels, box, None)
        return self._normalise(pixels)

    def draw(self, index: Tensor, epoch: int, view: int) -> ViewParameters:
        """What is random about view `view` (0 or 1) of the samples `index` in `epoch`."""
        # MPS has no float64, and not all of int64: there the few numbers are made on the CPU.
        index = index.cpu() if index.device.type == "mps" else index
        u = uniform(self.seed, epoch, index, view, DRAWS + 10)
        crop, (flip, on, order, *factors, gray, blur, sigma) = u[:, :DRAWS], u[:, DRAWS:].unbind(1)
        strength = (0.8 * self.jitter, 0.8 * self.jitter, 0.8 * self.jitter, 0.2 * self.jitter)
        # Factors are uniform from max(0, 1 - strength) to 1 + strength; hue is centred on 0.
        low = u.new_tensor([*(max(0.0, 1 - s) for s in strength[:3]), -strength[3]])
        high = u.new_tensor([*(1 + s for s in strength[:3]), strength[3]])
        factor = low + torch.stack(factors[:4], 1) * (high - low)
        chance = JITTER_CHANCE if self.jitter else 0.0
        return ViewParameters(
            crop=crop,
            flip=flip < self.flip,
            jitter=color.Jitter(
                on=on < chance,
                order=color.ORDERS.to(u.device)[(order * len(color.ORDERS)).long()],
                factor=factor,
            ),
            gray=gray < self.grayscale,
            blur=blur < self.blur,
            sigma=SIGMA[0] + sigma * (SIGMA[1] - SIGMA[0]),
        )

    def boxes(self, how: ViewParameters, height: Tensor | int, width: Tensor | int) -> Tensor:
        """Crop boxes `int64 [B, 4]` (top, left, height, width) for images of the given sizes."""
        return random_boxes(how.crop, height, width, self.scale)

    def _view(self, images: Tensor, how: ViewParameters, view: int) -> Tensor:
        if images.dim() == 5:
            pixels = images[:, view].float().div_(255)
            pixels = torch.where(_each(how.flip).to(pixels.device), pixels.flip(-1), pixels)
        else:
            box = self.boxes(how, *images.shape[-2:])
            pixels = self._cut(images.float().div_(255), box, how.flip)
        device = pixels.device
        if how.flip.device != device:
            how = _to(how, device)
        pixels = color.jitter(pixels, how.jitter)
        pixels = color.to_grayscale(pixels, how.gray)
        return self._normalise(self._blur(pixels, how.blur, how.sigma))

    def _cut(self, pixels: Tensor, box: Tensor, flip: Tensor | None) -> Tensor:
        (height, width), out = pixels.shape[-2:], self.image_size
        top, left, h, w = box.unbind(1)
        rows = resampling_matrix(top, h, None, height, out).to(pixels.device)
        columns = resampling_matrix(left, w, flip, width, out).to(pixels.device)
        return apply_separable(pixels, rows, columns)

    def _blur(self, pixels: Tensor, on: Tensor, sigma: Tensor) -> Tensor:
        chosen = on.nonzero()[:, 0]
        if chosen.numel():
            matrix = blur_matrix(sigma[chosen], self.image_size)
            pixels[chosen] = apply_separable(pixels[chosen], matrix, matrix)
        return pixels

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return pixels.sub_(mean.to(pixels.device)).div_(std.to(pixels.device))


def blur_radius(size: int) -> int:
    """Radius in pixels of the blur's kernel: a tenth of the image wide (the paper's appendix A)."""
    return max(1, size // 10 // 2)


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur of a line of `size` pixels as a matrix, mirrored at the edges.

    Args:
        sigma: `[B]`, standard deviations in pixels.
        size: pixels of the line.

    Returns:
        `float32 [B, size, size]`; each row sums to 1.
    """
    radius = blur_radius(size)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    # In float64, so that the rounded weights don't depend on a sample's place in the batch.
    precision = torch.float64 if sigma.device.type != "mps" else torch.float32
    weights = torch.exp(-0.5 * (offsets / sigma.to(precision)[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True)).float()
    line = torch.arange(size, device=sigma.device)
    # Reflection without repeating the edge: -1 is 1, and size is size - 2.
    source = (line[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    matrix = weights.new_zeros(len(sigma), size, size)
    return matrix.scatter_add_(
        2, source.expand(len(sigma), -1, -1), weights[:, None].expand(-1, size, -1)
    )


def _channels(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)


def _each(flags: Tensor) -> Tensor:
    return flags[:, None, None, None]


def _to(how: ViewParameters, device: torch.device) -> ViewParameters:
    jitter = color.Jitter(*(part.to(device) for part in how.jitter))
    parts = {k: v.to(device) for k, v in how._asdict().items() if isinstance(v, Tensor)}
    return ViewParameters(**parts, jitter=jitter)


def _check(
    image_size: int,
    scale: tuple[float, float],
    flip: float,
    jitter: float,
    grayscale: float,
    blur: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    if image_size < 4:
        raise UserError(f"data.image_size is {image_size}, but views need at least 4 pixels")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"data.scale is {list(scale)}, but must be two shares of the image's area, smaller "
            "first, above 0 and at most 1"
        )
    for name, chance in {"flip": flip, "grayscale": grayscale, "blur": blur}.items():
        if not 0 <= chance <= 1:
            raise UserError(f"data.{name} is {chance}, but is a probability, from 0 to 1")
    if not 0 <= jitter <= 2.5:
        raise UserError(
            f"data.jitter is {jitter}, but is the paper's strength s, from 0 to 2.5 "
            "(0.5 for CIFAR-10)"
        )
    if len(mean) != len(std) or any(s <= 0 for s in std):
        raise UserError(
            f"data.mean {list(mean)} and data.std {list(std)} must have one number a channel, and "
            "the standard deviations must be above 0"
        )
