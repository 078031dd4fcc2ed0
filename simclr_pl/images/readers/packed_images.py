"""Images of a packed set: whole ones of many sizes, in one row of pixels mapped into memory.

The pages of a mapped file are those of the system's cache. All ranks and workers of a machine share
them, and pixels that do not fit into memory are read when they are asked for.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import Copies, Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import accepted, name_of
from simclr_pl.images.names import Names
from simclr_pl.images.workers.crops import PHOTOGRAPHS


class MappedFile:
    """A file that is mapped into memory, and must not become shorter while it is.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, path.stat()

    def check(self) -> None:
        """Looks at the file's size: the system ends a process that reads behind a file's end.

        A mapped file that was removed or replaced meanwhile can still be read.

        Raises:
            UserError: the file has become shorter.
        """
        try:
            now = self.path.stat()
        except OSError:
            return
        same = (now.st_dev, now.st_ino) == (self.found.st_dev, self.found.st_ino)
        if same and now.st_size < self.found.st_size:
            raise UserError(
                f"{self.path} was cut from {self.found.st_size} to {now.st_size} bytes while it "
                "was in use: copy it again, or pack the images again"
            )


class PackedImages:
    """Whole RGB images, whose planes `[3, H, W]` follow each other in one row of pixels.

    Args:
        pixels: `uint8 [M]`, on any device.
        sizes: `int64 [N, 2]`, height and width of each image in pixels.
        starts: `int64 [N]`, where each image begins in `pixels`.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        names: paths of the packed files below the folder of their split; `None` where the index
            has no names.
        file: the file that `pixels` are mapped from.
        groups: `int64 [N]`, numbers of groups, `UNGROUPED` where an image is a group of its own;
            `None` without groups.
        group_names: names of the groups, in the order of their numbers.
    """

    channels = 3
    side: int | None = None

    def __init__(
        self,
        pixels: Tensor,
        sizes: Tensor,
        starts: Tensor,
        labels: Tensor,
        names: Names | None = None,
        file: "MappedFile | None" = None,
        groups: Tensor | None = None,
        group_names: Sequence[bytes] = (),
    ) -> None:
        self.pixels, self.sizes, self.starts, self.labels = pixels, sizes, starts, labels
        self.names, self.file = names, file
        self.groups, self.group_names = groups, group_names
        # A split and its parts share their pixels, and the copies of these on other devices.
        self._copies = Copies()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> str:
        """Where the pixels are, in words."""
        there = self.pixels.device.type
        return "a file mapped into memory" if there == "cpu" else f"in memory ({there})"

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        """Yields whole images, whatever `cut` is, padded with zeros to the batch's largest."""
        device = self.pixels.device
        pinned = device.type == "cpu" and torch.cuda.is_available()
        for index in plan:
            if self.file is not None and device.type == "cpu":
                self.file.check()
            sizes = self.sizes[index]
            tall, wide = sizes.amax(0).tolist()
            images = torch.zeros(
                len(index), 3, tall, wide, dtype=torch.uint8, device=device, pin_memory=pinned
            )
            places = zip(images, self.starts[index].tolist(), sizes.tolist(), strict=True)
            for there, start, (height, width) in places:
                planes = self.pixels[start : start + 3 * height * width].view(3, height, width)
                there[:, :height, :width] = planes
            labels, places_in_split, sizes = (
                column.to(device, non_blocking=True)
                for column in (self.labels[index], index, sizes)
            )
            groups = None if self.groups is None else self.groups[index].to(device)
            yield Batch(images, labels, places_in_split, epoch, sizes, groups)

    def select(self, index: Tensor) -> Self:
        """The images at `index`, as a split of their own; no pixels are copied."""
        return self._twin(
            sizes=self.sizes[index],
            starts=self.starts[index],
            labels=self.labels[index],
            names=None if self.names is None else self.names.at(index),
            groups=None if self.groups is None else self.groups[index],
        )

    def relabel(self, labels: Tensor) -> Self:
        """The same images with other labels."""
        return self._twin(labels=labels)

    def statistics(self) -> Statistics:
        """Mean and standard deviation of photographs."""
        return PHOTOGRAPHS

    def content(self, place: int) -> bytes:
        """The pixels of an image."""
        start, (height, width) = int(self.starts[place]), self.sizes[place].tolist()
        return self.pixels[start : start + 3 * height * width].cpu().numpy().tobytes()

    def prepared(self, paper: Any, views: Any, workers: int) -> Self:
        """The same images, whole: views are made on the device.

        Raises:
            UserError: the views' call takes no argument `sizes`.
        """
        call = views.forward if isinstance(views, nn.Module) else views
        if not accepted(call, {"sizes": None}):
            raise UserError(
                f"data.views: packed images have many sizes, and {name_of(views)} takes no "
                "argument 'sizes' (int64 [B, 2], height and width): give its call one, or "
                "subclass SimCLRViews"
            )
        return self

    def on(self, device: torch.device, room: float) -> Self:
        """The same images on another device, once for all parts of a split.

        Labels, sizes and plan stay on the CPU.
        """
        return self._twin(pixels=self._copies.on(device, self.pixels, room))

    def close(self) -> None:
        """Nothing to end."""

    def _twin(self, **other: Any) -> Self:
        twin = copy.copy(self)
        vars(twin).update(other)
        return twin
