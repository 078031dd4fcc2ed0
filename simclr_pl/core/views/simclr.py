"""Two random views of each image of a batch, all of them at once, on the device.

The operations and their order are the paper's (appendix A): random resized crop, flip, colour
jitter, grayscale, Gaussian blur. What is random about sample i is `uniform(seed, epoch, i, view)`,
so that views don't depend on batch, rank, worker or device. (The draws are the same bits
everywhere; the pixels made from them are the same bits for any batch on one machine, and agree
between devices to float32 rounding.)
"""

import torch
from torch import Tensor, nn

from simclr_pl.core.randomness import uniform
from simclr_pl.core.speed.allocator import keep_freed_memory
from simclr_pl.core.speed.compiler import check_compiler, compiled
from simclr_pl.core.speed.constants import constant
from simclr_pl.core.views import color, crop, fused
from simclr_pl.core.views.blur import blurred
from simclr_pl.core.views.parameters import ViewParameters, check_settings

SCALE = (0.08, 1.0)
"""Bounds of a crop's area, as a share of the image's, unless they are given (the paper's)."""

JITTER_CHANCE = 0.8
"""How often colours are jittered (the paper's appendix A)."""

SIGMA = (0.1, 2.0)
"""Bounds of the blur's standard deviation, in pixels (the paper's appendix A)."""

PART = 2**20
"""Numbers that a CPU works on at a time: more leave its cache, fewer are done before they begin."""


class SimCLRViews(nn.Module):
    """SimCLR's augmentation, batched, as a pure function of (seed, epoch, sample index, view).

    Source: Chen et al. 2020, appendix A; google-research/simclr `data_util.py`. Each operation
    agrees with `torchvision.transforms.v2.functional` on float images.

    Args:
        image_size: side S of a view, in pixels.
        scale: bounds of a crop's area, as a share of the image's.
        flip: probability of mirroring left and right.
        jitter: the paper's strength s, 0 to 2.5: factors within 0.8s of 1, hue within 0.2s; p 0.8.
        grayscale: probability of dropping colour (default: 0.2 of RGB, 0 of other bands).
        blur: probability of Gaussian blur, with a kernel of a tenth of the image.
        mean: of each channel, on a scale of 0 to 1.
        std: of each channel, likewise.
        seed: the run's seed.
        compiled: compile what makes them, cuts (but of images of many sizes), colours and, on
            accelerators, blur: the same views to rounding, and the first batches wait for the
            compiler.
        count: V, views of each image.

    Raises:
        UserError: a value out of its range; `compiled` without a C++ compiler.
    """

    def __init__(
        self,
        image_size: int,
        *,
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
        super().__init__()
        keep_freed_memory()
        self.image_size, self.count, self.seed, self.scale = image_size, count, seed, scale
        self.mean, self.std, self.compiled = tuple(mean), tuple(std), compiled
        if grayscale is None:
            grayscale = 0.2 if len(self.mean) == 3 else 0.0
        self.flip, self.jitter, self.grayscale, self.blur = flip, jitter, grayscale, blur
        check_settings(self)
        if compiled:
            check_compiler("data.compiled")

    @torch.no_grad()
    def forward(
        self, images: Tensor, index: Tensor, epoch: int, sizes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Makes the views.

        Args:
            images: `uint8 [B, C, H, W]`, or `float32` in [0, 1]; or `[B, V, C, S, S]` where a
                worker has already cut the views' boxes.
            index: `int64 [B]`, each image's place in its split.
            epoch: the epoch, from 0.
            sizes: `int64 [B, 2]`, height and width of each image in pixels, where they don't fill
                `images`; nothing behind them is looked at.

        Returns:
            V tensors `float32 [B, C, S, S]`, normalised.
        """
        # All in one go: small batches, too, are worked on in large parts.
        return self._views(images, index, epoch, sizes, self.count).tensor_split(self.count)

    @torch.no_grad()
    def one(self, images: Tensor, index: Tensor, epoch: int, sizes: Tensor | None = None) -> Tensor:
        """Makes the first of the two views alone: `float32 [B, C, S, S]`."""
        return self._views(images, index, epoch, sizes, 1)

    @torch.no_grad()
    def clean(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """The central square, normalised: `uint8 [B, C, H, W]` to `float [B, C, S, S]`.

        Images with `sizes` (see `forward`) are photographs: `CLEAN_SHARE` of their shorter side.
        """
        height, width = images.shape[-2:]
        mean, std = self._statistics(images.device)
        if sizes is None and height == width == self.image_size:
            return crop.to_unit(images).sub_(mean).div_(std)
        which = torch.arange(len(images), device=images.device)
        if sizes is None:
            box = crop.centre_boxes(height, width)
        else:
            box = crop.centre_boxes(sizes[:, 0], sizes[:, 1], crop.CLEAN_SHARE)
        box = box.to(images.device).expand(len(images), 4)
        planes = self._resized(images, which, box, None, mixed=sizes is not None)
        return planes.transpose(0, 1).contiguous().sub_(mean).div_(std)

    def draw(self, index: Tensor, epoch: int, view: int | Tensor) -> ViewParameters:
        """What is random about view `view` (0 or 1, or `int64 [B]`) of the samples `index`."""
        # MPS has no float64, and not all of int64: there the few numbers are made on the CPU.
        if index.device.type == "mps":
            index, view = index.cpu(), view.cpu() if isinstance(view, Tensor) else view
        bands, first = len(self.mean) if len(self.mean) not in (1, 3) else 0, crop.DRAWS + 10
        u = uniform(self.seed, epoch, index, view, first + 4 * bands)
        flip, on, order, *factors, gray, blur, sigma = u[:, crop.DRAWS : first].unbind(1)
        factor = torch.stack(factors, 1)
        # Factors are uniform from max(0, 1 - 0.8 s) to 1 + 0.8 s; the hue's turn is centred on 0.
        strong, turn = 0.8 * self.jitter, 0.2 * self.jitter
        bounds = ((max(0.0, 1 - strong),) * 3 + (-turn,), (1 + strong,) * 3 + (turn,))
        low, high = constant(bounds, u.dtype, u.device)
        if bands:  # each has its own
            factor = u[:, first:].unflatten(1, (4, bands))
            low, high = low[:, None], high[:, None]
        orders = constant(color.ORDERS, torch.int64, u.device)
        jitter = color.Jitter(
            on=on < (JITTER_CHANCE if self.jitter else 0.0),
            order=orders[(order * len(orders)).long()],
            factor=low + factor * (high - low),
        )
        drawn = u[:, : crop.DRAWS], flip < self.flip, jitter, gray < self.grayscale
        sigma = SIGMA[0] + sigma * (SIGMA[1] - SIGMA[0])
        return ViewParameters(*drawn, blur < self.blur, sigma, own=u[:, :0])

    def boxes(self, how: ViewParameters, height: Tensor | int, width: Tensor | int) -> Tensor:
        """Crop boxes `int64 [B, 4]` (top, left, height, width) for images of the given sizes.

        A subclass may append columns that its `cut` reads.
        """
        return crop.random_boxes(how.crop, height, width, self.scale)

    def _views(
        self, images: Tensor, index: Tensor, epoch: int, sizes: Tensor | None, views: int
    ) -> Tensor:
        """All first views and then all second ones, made in parts that a CPU's cache holds."""
        count, channels, size = views * len(images), images.shape[-3], self.image_size
        device = images.device
        if not count:  # of a batch whose files could not be read
            return torch.empty(0, channels, size, size, device=device)
        image = torch.arange(len(images), device=device).repeat(views)
        view = torch.arange(views, device=device).repeat_interleave(len(images))
        how = self.draw(index.repeat(views), epoch, view)
        size_of = images.shape[-2:] if sizes is None else sizes.repeat(views, 1).unbind(1)
        box = self.boxes(how, *size_of).to(device)
        how = how.to(device)
        if not images.is_cpu:
            planes = self.cut(images, image, view, box, how, mixed=sizes is not None)
            return self.recolour(planes, how)
        done = torch.empty(count, channels, size, size, dtype=torch.float32)
        start = 0
        place = color.place_of_hue(how.jitter)
        for places in place.tensor_split(-(-count // _at_a_time(PART, done[0]))):
            part = places.argsort(stable=True) + start
            drawn, there = how.select(part), done[start : start + len(part)]
            which = image[part], view[part], box[part], drawn
            made = self.recolour(self.cut(images, *which, mixed=sizes is not None), drawn)
            torch.index_select(made, 0, (part - start).argsort(), out=there)
            start += len(part)
        return done

    def cut(
        self, images: Tensor, which: Tensor, view: Tensor, box: Tensor, how: ViewParameters,
        *, mixed: bool,
    ) -> Tensor:  # fmt: skip
        """Crops, mirrored where they are to be: `float [C, B, S, S]` in [0, 1]."""
        if images.dim() == 5:
            cut = which * images.shape[1] + view
            return _mirrored(images.flatten(0, 1).index_select(0, cut), how.flip)
        return self._resized(images, which, box, how.flip, mixed=mixed)

    def _resized(
        self, images: Tensor, which: Tensor, box: Tensor, flip: Tensor | None, *, mixed: bool
    ) -> Tensor:
        (height, width), size = images.shape[-2:], self.image_size
        # Code is compiled for a number of taps. Of images of many sizes each batch would have its
        # own, and all of them would wait for the compiler.
        weigh, resample = crop.taps, crop.resampled
        if self.compiled and not mixed:
            weigh, resample = compiled(crop.taps), compiled(crop.resampled)
        tall, wide = height, width
        if box.is_cpu and weigh is crop.taps:  # it saves work to know; accelerators would wait
            tall, wide = int(box[:, 2].max()), int(box[:, 3].max())
        top, left, h, w = box.unbind(1)
        rows = weigh(top, h, None, height, size, tall)
        columns = weigh(left, w, flip, width, size, wide)
        planes: Tensor = resample(images, which, *rows, *columns)
        return planes

    def recolour(self, planes: Tensor, how: ViewParameters) -> Tensor:
        """Everything behind the crop: `float [C, B, S, S]` to `[B, C, S, S]`, its own memory."""
        mean, std = self._statistics(planes.device)
        colours = len(planes) in (1, 3) or self.jitter or self.grayscale
        if colours and (self.compiled or not planes.is_cpu):
            fuse = compiled(fused.recoloured) if self.compiled else fused.recoloured
            images: Tensor = fuse(planes, how.jitter, how.gray, mean, std)
        else:
            if self.jitter or self.grayscale:
                color.to_grayscale(color.jitter(planes, how.jitter), how.gray)
            images = planes.transpose(0, 1).sub_(mean).div_(std)
        # Normalising and blurring are linear: either may come first.
        if self.blur and images.is_cpu:
            _blur_some(images, how)
        elif self.blur:
            blur = compiled(_blur_all) if self.compiled else _blur_all
            images = blur(images, how.blur, how.sigma)
        return images

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = constant((self.mean, self.std), torch.float32, device)[..., None, None]
        return mean, std


def _blur_some(images: Tensor, how: ViewParameters) -> None:
    """Blurs those of `float [B, C, S, S]` that are to be, in place."""
    for chosen in how.blur.nonzero()[:, 0].split(_at_a_time(PART // 4, images[0])):
        if len(chosen):  # none is split into one part of none
            sharp = images.transpose(0, 1).index_select(1, chosen)
            blunt = blurred(sharp, how.sigma[chosen])
            images.index_copy_(0, chosen, blunt.transpose(0, 1))


def _blur_all(images: Tensor, on: Tensor, sigma: Tensor) -> Tensor:
    """The same for accelerators: the host needn't wait to learn how many there are."""
    blunt = blurred(images.transpose(0, 1), sigma).transpose(0, 1)
    return torch.where(on[:, None, None, None], blunt, images)


def _at_a_time(cache: int, image: Tensor) -> int:
    """How many of such images to work on together."""
    return max(1, cache // image.numel())


def _mirrored(images: Tensor, flip: Tensor) -> Tensor:
    """`uint8 [B, C, S, S]` to planes `float [C, B, S, S]` in [0, 1], those of `flip` mirrored."""
    planes = images.new_empty(images.transpose(0, 1).shape, dtype=torch.float32)
    planes.copy_(images.transpose(0, 1))
    planes = planes if images.is_floating_point() else planes.div_(255)
    if not planes.is_cpu:  # it would wait to be told how many there are
        return torch.where(flip[:, None, None], planes.flip(-1), planes)
    chosen = flip.nonzero()[:, 0]
    return planes.index_copy_(1, chosen, planes.index_select(1, chosen).flip(-1))
