"""What images are asked for: the protocol of sources, and the one that lives in memory.

A source is a split's images with labels. It is asked for the batches of an epoch, as lists of
indices, and yields them as `Batch`; it knows nothing of ranks, orders or augmentation beyond the
boxes to cut. Other sources (files, packed sets, data sets of one's own) are in `simclr_pl.images`.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED, Batch, Cut
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.parameters import MIN_SIDE

Labels = Literal["given", "none"]
"""Whether images keep the labels that a data set gives them."""

OnBadImage = Literal["error", "skip"]
"""Whether an image that cannot be read ends a run, or is stepped over."""

Range = tuple[float, float]
"""The numbers of an image that are 0 and 1 for the network."""

Pages = Literal["channels", "images"]
"""What the pages of a file are."""

MAX_PIXELS = 89_478_485
"""Images with more are refused unless that is changed: there PIL begins to warn (268 MB of RGB)."""

MOST_COUNTED = 60_000
"""Images whose pixels are counted for statistics, evenly spread over a set that has more."""

LEAST_CONTRAST = 0.02
"""A colour with less than this share of another's standard deviation is noise: jitter would mix the
other into it, 50 standard deviations high."""


class Statistics(NamedTuple):
    """What images are normalised with.

    Attributes:
        mean: of each channel, on a scale of 0 to 1.
        std: of each channel, likewise: what its pixels are divided by, above 0.
        empty: the channels without contrast, from 0. Their `std` is not their own.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    empty: tuple[int, ...] = ()


class Source(Protocol):
    """A split's images with labels.

    A source whose images come in groups has two attributes more, `groups` (`int64 [N]`, `UNGROUPED`
    where an image is a group of its own) and `group_names` (bytes, in the order of these numbers).
    One that works ahead has a method more, `expect`: before each epoch of training it is given a
    function of the next one's plan and epoch.

    Attributes:
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        channels: C, of all images.
        side: the shorter side of the images in pixels, where all have the same; else `None`.
    """

    labels: Tensor
    channels: int
    side: int | None

    def __len__(self) -> int:
        """N."""

    @property
    def names(self) -> Sequence[bytes] | None:
        """Of each image; `None` where an image has its place alone.

        A file's is its path below the folder of its split, as bytes (`os.fsencode`) with `/`
        between its parts: the same in every place that the folder is copied to, and in the packed
        set that is written of it.
        """

    @property
    def stored(self) -> str:
        """Where the images are, and what reads them, in words."""

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields a batch for each list of indices.

        Args:
            plan: `int64 [B]` each, places in the split.
            epoch: that the views are of.
            cut: what is wanted of each image, where the source cuts it.
            training: whether rows of images that cannot be read are given to others; else a batch
                has fewer.
        """

    def select(self, index: Tensor) -> Self:
        """The images at `index`, as a split of their own."""

    def relabel(self, labels: Tensor) -> Self:
        """The same images with other labels."""

    def statistics(self) -> Statistics:
        """What the images are to be normalised with."""

    def content(self, place: int) -> bytes:
        """What tells an image from another."""

    def prepared(self, paper: Any, views: Any, workers: int) -> Self:
        """The same images, to be cut for those views.

        Args:
            paper: the paper's, `SimCLRViews`, whose boxes are cut.
            views: what makes views for training: the paper's, or somebody's own.
            workers: processes that read images; 0: this one.

        Raises:
            UserError: such views cannot be made of these images.
        """

    def on(self, device: torch.device, room: float) -> Self:
        """The same images on a device, where they can be and take at most `room` bytes there."""

    def close(self) -> None:
        """Ends worker processes, where there are some; the next batches start new ones."""


class Copies(WeakValueDictionary[torch.device, Tensor]):
    """Copies of pixels on other devices, each for as long as a loader has it."""

    def __reduce__(self) -> Any:
        """Another process has copies of its own."""
        return type(self), ()

    def on(self, device: torch.device, pixels: Tensor, room: float) -> Tensor:
        """The pixels on a device, copied once; as they are where they take more than `room`."""
        there = pixels if pixels.device == device else self.get(device)
        if there is None and pixels.nbytes <= room:
            there = self[device] = pixels.to(device)
        return pixels if there is None else there


class ArrayImages:
    """Images that live in one uint8 tensor.

    Args:
        images: `uint8 [N, C, H, W]`, on any device.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
    """

    names: Sequence[bytes] | None = None
    groups: Tensor | None = None
    group_names: Sequence[bytes] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.uint8,)

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dim() != 4 or images.dtype not in self.dtypes or len(images) != len(labels):
            raise UserError(
                f"images must be uint8 [N, C, H, W] with N labels, not {images.dtype} "
                f"{[*images.shape]} with {len(labels)}"
            )
        if min(images.shape[-2:]) < MIN_SIDE:
            raise UserError(
                f"images are {images.shape[-2]} x {images.shape[-1]} pixels, too small to crop: "
                f"at least {MIN_SIDE} x {MIN_SIDE} are needed"
            )
        self.images, self.labels, self._copies = images, labels, Copies()
        self.channels = images.shape[1]
        self.side: int | None = min(images.shape[-2:])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> str:
        """In words."""
        return f"in memory ({self.images.device.type})"

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields whole images, whatever `cut` is: views are made on the device."""
        device = self.images.device
        # Out of pinned memory a GPU fetches them while the host goes on.
        pinned = device.type == "cpu" and torch.cuda.is_available()
        for index in plan:
            labels = self.labels[index].to(device, non_blocking=True)
            there = index.to(device, non_blocking=True)
            images = self.images.new_empty(len(index), *self.images.shape[1:], pin_memory=pinned)
            torch.index_select(self.images, 0, there, out=images)
            groups = None if self.groups is None else self.groups[index].to(device)
            yield Batch(images, labels, there, epoch, groups=groups)

    def select(self, index: Tensor) -> Self:
        """The images at `index`, as a split of their own."""
        groups = None if self.groups is None else self.groups[index]
        pixels, labels = self.images[index], self.labels[index]
        return self._twin(images=pixels, labels=labels, groups=groups, _copies=Copies())

    def relabel(self, labels: Tensor) -> Self:
        """The same images with other labels."""
        return self._twin(labels=labels)

    def statistics(self) -> Statistics:
        """Counted, of at most `MOST_COUNTED` images."""
        return counted(self.images[:: -(-len(self) // MOST_COUNTED)].unbind(1))

    def content(self, place: int) -> bytes:
        """Its pixels."""
        return self.images[place].cpu().numpy().tobytes()

    def prepared(self, paper: Any, views: Any, workers: int) -> Self:
        """Itself: it gives whole images, of which any views can be made."""
        return self

    def on(self, device: torch.device, room: float) -> Self:
        """The images on that device; labels, groups and plan stay on the CPU."""
        return self._twin(images=self._copies.on(device, self.images, room))

    def close(self) -> None:
        """Nothing to end."""

    def _twin(self, **other: Any) -> Self:
        twin = copy.copy(self)
        vars(twin).update(other)
        return twin


def counted(planes: Iterable[Tensor], top: int = 255) -> Statistics:
    """Mean and standard deviation of each channel, on a scale of 0 to 1.

    A channel without contrast is divided by what the channel with most contrast is divided by (1
    where none has any): in a view, changed colours and contrasts give it pixels of that size.

    Args:
        planes: whole numbers from 0 to `top`, of any shape, pixels of a channel each.
        top: the number that is 1.
    """
    levels = torch.arange(top + 1, dtype=torch.float64) / top
    mean, std = [], []
    for channel in planes:
        counts = torch.bincount(channel.flatten(), minlength=top + 1).double()
        share = counts / counts.sum()
        centre = (share * levels).sum()
        mean.append(round(float(centre), 4))
        std.append(round(float((share * (levels - centre) ** 2).sum().sqrt()), 4))
    most = max(std)
    # Colours are mixed in images of 3 channels alone: in others, the faintest has its own say.
    least = LEAST_CONTRAST * most if len(std) == 3 else 0.0
    empty = tuple(c for c, own in enumerate(std) if own <= least)
    divisors = (most or 1.0 if c in empty else own for c, own in enumerate(std))
    return Statistics(tuple(mean), tuple(divisors), empty)


class Splits(NamedTuple):
    """A data set's images.

    Attributes:
        train: what pretraining sees; labels of the validation holdout are `UNLABELLED`.
        val: for callbacks and every choice.
        test: for one score at the end, or `None`.
        classes: names in the order of labels; empty where nothing is labelled.
        held: `int64 [n]`, places in train of what is held out for validation; `None` where the data
            set brings a validation split of its own.
    """

    train: Source
    val: Source
    test: Source | None
    classes: tuple[str, ...]
    held: Tensor | None = None


def check_splits(splits: Any, name: str) -> None:
    """Looks at the labels and channels of `Splits`, or of what becomes some.

    Raises:
        UserError: an empty split, labels that are no places of classes, different channels.
    """
    classes, channels = len(splits.classes), splits.train.channels
    for split in ("train", "val", "test"):
        source: Source | None = getattr(splits, split)
        if source is None:
            continue
        if not len(source):
            raise UserError(f"{name}'s {split} split is empty: give it images, or leave it out")
        low, high, given = int(source.labels.min()), int(source.labels.max()), source.channels
        wrong = f"images of {given} channels, but train has {channels}: give both as many"
        if low < UNLABELLED or high >= classes:
            fit = f"from 0 to {classes - 1} (or {UNLABELLED} for unlabelled)"
            wrong = f"labels from {low} to {high}, but they must be {fit}"
        elif given == channels:
            continue
        raise UserError(f"{name}'s {split} split has {wrong}")


def per_channel(name: str, given: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Numbers of the option `data.NAME`, one for each channel.

    Raises:
        UserError: more or fewer of them.
    """
    if len(given) != channels:
        raise UserError(
            f"data.{name} has {len(given)} numbers, but the images have {channels} channels: "
            "give as many (and an encoder images like those that it was trained on)"
        )
    return tuple(given)
