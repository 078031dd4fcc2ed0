"""Images looked at one by one: sizes, kinds, numbers of each band, copies, and those that are bad.

Worker processes read the images; what they hand over is small, however large an image is.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from simclr_pl.core.data.sources import MAX_PIXELS, ArrayImages, Source
from simclr_pl.core.errors import UserError
from simclr_pl.images.files.decode import BadImageError, EncodedImage, check_size
from simclr_pl.images.numbers.sources import Numbers
from simclr_pl.images.readers.encoded import GrayImage
from simclr_pl.images.readers.items import NumberItems
from simclr_pl.images.readers.packed_images import PackedImages
from simclr_pl.images.workers.images import WorkerImages, one_by_one
from simclr_pl.images.workers.pool import results_of

CHUNK = 16
"""Images that a worker looks at before it says so."""

KEPT = 2**21
"""Numbers of a band that are kept for percentiles, evenly spread over all images."""

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)


class Bad(NamedTuple):
    """An image that cannot be read.

    Attributes:
        split: of the image.
        name: of the image.
        why: the reason alone.
        sentence: the error that a training would end with.
    """

    split: str
    name: str
    why: str
    sentence: str


class Band(NamedTuple):
    """The numbers of a channel in train, as they are stored.

    Attributes:
        mean: of all pixels.
        std: likewise.
        low: the least number.
        high: the greatest.
        percentiles: at `PERCENTILES`, of a sample of pixels.
        unit_mean: mean on the scale of the range, from 0 to 1.
        unit_std: likewise.
    """

    mean: float
    std: float
    low: float
    high: float
    percentiles: tuple[float, ...]
    unit_mean: float
    unit_std: float


class Survey(NamedTuple):
    """What was found in a sample of a data set's images, or in all of them.

    Attributes:
        images: number of images of each split.
        looked: number of those that were looked at.
        kinds: how many images there are of each kind, in words: "RGB, 8 bits".
        sizes: `int64 [N, 2]`, height and width of the images that can be read.
        bands: of train, one for each channel.
        bad: the images that cannot be read.
        copies: groups of images whose pixels are the same, each as (split, name).
    """

    images: dict[str, int]
    looked: dict[str, int]
    kinds: Counter[str]
    sizes: Tensor
    bands: list[Band]
    bad: list[Bad]
    copies: list[list[tuple[str, str]]]

    @property
    def across(self) -> list[list[tuple[str, str]]]:
        """The copies that lie in several splits."""
        return [copies for copies in self.copies if len({split for split, _ in copies}) > 1]


class _Seen(NamedTuple):
    """An image that a worker has looked at; `moments` has a row for each channel."""

    name: str
    kind: str
    size: tuple[int, int]
    digest: bytes
    moments: np.ndarray[Any, Any]
    some: np.ndarray[Any, Any]


def survey(
    splits: Mapping[str, Source],
    most: int | None,
    workers: int,
    max_pixels: int = MAX_PIXELS,
    held: Tensor | None = None,
) -> Survey:
    """Looks at images of some splits, evenly spread, with a progress bar in a terminal.

    Args:
        splits: by name; numbers have a range.
        most: number of images that are looked at, in all; `None` for all images.
        workers: processes that read images; 0: this one.
        max_pixels: of an image; larger ones are bad.
        held: `int64 [n]`, places of train whose copies count as those of val.
    """
    images = {split: len(source) for split, source in splits.items()}
    share = 1.0 if most is None else min(1.0, most / max(1, sum(images.values())))
    places = {split: _spread(count, share) for split, count in images.items()}
    looked = {split: len(of) for split, of in places.items()}
    jobs = [(s, of[n : n + CHUNK]) for s, of in places.items() for n in range(0, len(of), CHUNK)]
    kept = max(16, min(2**12, KEPT // max(1, sum(looked.values()))))
    look = partial(_look, splits=splits, max_pixels=max_pixels, kept=kept)
    in_files = any(isinstance(source, WorkerImages) for source in splits.values())
    results = results_of(look, jobs, workers if in_files else 0)
    seen: list[tuple[str, _Seen]] = []
    bad: list[Bad] = []
    of_val = set() if held is None else set(held.tolist())
    bar = tqdm(desc="looking", total=sum(looked.values()), unit=" images", disable=None)
    with closing(results), bar:
        for (split, chunk), found in zip(jobs, results, strict=True):
            bad += [each for each in found if isinstance(each, Bad)]
            for place, each in zip(chunk, found, strict=True):
                if isinstance(each, _Seen):
                    in_val = split == "train" and place in of_val
                    seen.append(("val" if in_val else split, each))
            bar.update(len(chunk))
    return Survey(
        images=images,
        looked=looked,
        kinds=Counter(each.kind for _, each in seen),
        sizes=torch.tensor([each.size for _, each in seen]).reshape(-1, 2),
        bands=_bands([each for split, each in seen if split == "train"]),
        bad=bad,
        copies=_copies(seen),
    )


def _spread(count: int, share: float) -> list[int]:
    """Places of a share of so many images, evenly spread; 2 at least, where there are 2."""
    wanted = min(count, max(2, round(share * count)))
    return torch.linspace(0, count - 1, wanted, dtype=torch.float64).long().tolist()


# In a worker --------------------------------------------------------------------------------------


def _look(
    job: tuple[str, list[int]], splits: Mapping[str, Source], max_pixels: int, kept: int
) -> list[_Seen | Bad]:
    split, places = job
    source, found = splits[split], list[_Seen | Bad]()
    for place in one_by_one(source, places):
        name = _name(source, place)
        try:
            pixels, kind = _pixels_of(source, place, max_pixels)
        except BadImageError as error:
            found.append(Bad(split, name, error.why, str(error)))
            continue
        found.append(_seen(source, name, pixels, kind, kept))
    return found


def _name(source: Source, place: int) -> str:
    if isinstance(source, WorkerImages):
        return str(source.name(place))
    names = source.names
    return f"image {place}" if names is None else bytes(names[place]).decode(errors="replace")


def _pixels_of(source: Source, place: int, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, str]:
    """The whole image at a place, `[C, H, W]` as it is stored, and its kind in words.

    Files that are no numbers are decoded to RGB; their kind is the file's own.

    Raises:
        BadImageError: the image cannot be read, or is too small or too large.
    """
    if isinstance(source, NumberItems):
        pixels = source.checked(place, max_pixels)
    elif isinstance(source, Numbers):
        pixels = source.numbers(place)
        check_size(_name(source, place), pixels.shape[2], pixels.shape[1], max_pixels)
    elif isinstance(source, ArrayImages):
        pixels = source.images[place]
    elif isinstance(source, PackedImages):
        height, width = source.sizes[place].tolist()
        start = int(source.starts[place])
        pixels = source.pixels[start : start + 3 * height * width].view(3, height, width)
    elif isinstance(source, WorkerImages):
        opened: Any = source.open(place, max_pixels)
        gray = isinstance(opened, GrayImage)
        opened = opened.image if gray else opened
        if isinstance(opened, EncodedImage):
            kind = _MODES.get(opened.mode, f"Pillow's mode {opened.mode}")
            kind = "RGB, 16 bits" if opened.is_deep and opened.mode == "RGB" else kind
            pixels = pil_to_tensor(opened.rgb())
            return (pixels[:1] if gray else pixels), kind
        pixels = opened.pixels if hasattr(opened, "pixels") else _cut(source, opened)
    else:
        raise UserError(f"images that are {source.stored} cannot be looked at one by one")
    return pixels.cpu(), _kind_of(pixels)


def _cut(source: WorkerImages, opened: Any) -> Tensor:
    """An image of a kind that only crops can be cut from, as one square crop."""
    side = min(opened.height, opened.width)
    out = torch.empty(1, source.channels, side, side, dtype=source.pixel_dtype)
    opened.crops([[(0, 0, opened.height, opened.width)]], side, out)
    return out[0]


_MODES = {
    "RGB": "RGB, 8 bits", "L": "gray, 8 bits", "1": "gray, 1 bit", "I;16": "gray, 16 bits",
    "I;16B": "gray, 16 bits", "I": "gray, 16 bits", "F": "gray, float32",
    "RGBA": "RGB with transparency, 8 bits", "LA": "gray with transparency, 8 bits",
    "P": "palette", "CMYK": "CMYK, 8 bits",
}  # fmt: skip
"""Kinds of files by Pillow's modes."""


def _kind_of(pixels: Tensor) -> str:
    """The kind of an image `[C, H, W]` in words."""
    names = {1: "gray", 3: "RGB"}
    bits = {torch.uint8: "8 bits", torch.uint16: "16 bits", torch.float32: "float32"}
    return f"{names.get(len(pixels), f'{len(pixels)} channels')}, {bits[pixels.dtype]}"


def _seen(source: Source, name: str, pixels: Tensor, kind: str, kept: int) -> _Seen:
    flat = np.ascontiguousarray(pixels.flatten(1).numpy())
    digest = blake2b(f"{pixels.dtype}{[*pixels.shape]}".encode(), digest_size=16)
    digest.update(flat.data)
    numbers = flat.astype(np.float64)
    if isinstance(source, Numbers):
        unit = source.scaled(pixels.flatten(1)).double().numpy()
    else:
        unit = numbers / 255
    of = (a(numbers, axis=1) for a in (np.mean, np.var, np.min, np.max))
    moments = np.stack([*of, unit.mean(1), unit.var(1)], 1)
    some = flat[:, :: -(-flat.shape[1] // kept)].astype(np.float32)
    return _Seen(name, kind, (pixels.shape[1], pixels.shape[2]), digest.digest(), moments, some)


# All together -------------------------------------------------------------------------------------


def _bands(seen: list[_Seen]) -> list[Band]:
    """Numbers of each channel, over the images that have as many channels as most have."""
    if not seen:
        return []
    channels = Counter(len(each.moments) for each in seen).most_common(1)[0][0]
    alike = [each for each in seen if len(each.moments) == channels]
    weights = np.array([float(each.size[0] * each.size[1]) for each in alike])
    moments = np.stack([each.moments for each in alike])
    bands = []
    for channel in range(channels):
        mean, var, low, high, unit_mean, unit_var = moments[:, channel].T
        some = np.concatenate([each.some[channel] for each in alike])
        shares = tuple(float(number) for number in np.percentile(some, PERCENTILES))
        (centre, std), (unit, unit_std) = (
            _pooled(*of, weights) for of in ((mean, var), (unit_mean, unit_var))
        )
        bands.append(Band(centre, std, float(low.min()), float(high.max()), shares, unit, unit_std))
    return bands


def _pooled(mean: Any, var: Any, weights: Any) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, from those of each image."""
    centre = np.average(mean, weights=weights)
    return float(centre), float(np.average(var + (mean - centre) ** 2, weights=weights) ** 0.5)


def _copies(seen: list[tuple[str, _Seen]]) -> list[list[tuple[str, str]]]:
    groups: dict[bytes, list[tuple[str, str]]] = {}
    for split, each in seen:
        groups.setdefault(each.digest, []).append((split, each.name))
    return [group for group in groups.values() if len(group) > 1]
