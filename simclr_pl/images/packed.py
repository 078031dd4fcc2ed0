"""Images of different sizes, one after the other in one tensor: a file that is mapped into memory.

The pages of a mapped file are those of the system's cache. All ranks and workers of a machine look
at the same ones, and what doesn't fit into memory is read when it is asked for.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data.sources import Statistics
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import accepted, name_of
from simclr_pl.images.worker_crops import PHOTOGRAPHS


class MappedFile:
    """A file that is mapped, whose pixels must not be cut off while it is.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, path.stat()

    def check(self) -> None:
        """Looks at the file's size: the system ends a process that reads behind its end.

        A file that was removed or replaced meanwhile is still there for who has mapped it.

        Raises:
            UserError: it has become shorter.
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
        names: of the files that were packed, each below the folder of its split; `None` of a set
            that was packed without.
        file: that `pixels` are mapped from.
    """

    channels = 3
    side: int | None = None

    def __init__(
        self,
        pixels: Tensor,
        sizes: Tensor,
        starts: Tensor,
        labels: Tensor,
        names: Sequence[bytes] | None = None,
        file: "MappedFile | None" = None,
    ) -> None:
        self.pixels, self.sizes, self.starts, self.labels = pixels, sizes, starts, labels
        self.names, self.file = names, file
        # A split and its parts look at the same pixels, on every device that these have got to.
        self._copies: WeakValueDictionary[torch.device, Tensor] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> str:
        """In words."""
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
            yield Batch(images, labels, places_in_split, epoch, sizes)

    def select(self, index: Tensor) -> "PackedImages":
        """The images at `index`, as a split of their own; nothing is copied."""
        return self._twin(self.pixels, index, self.labels[index])

    def relabel(self, labels: Tensor) -> "PackedImages":
        """The same images with other labels."""
        return self._twin(self.pixels, torch.arange(len(labels)), labels)

    def statistics(self) -> Statistics:
        """Those of photographs."""
        return PHOTOGRAPHS

    def content(self, place: int) -> bytes:
        """Its pixels."""
        start, (height, width) = int(self.starts[place]), self.sizes[place].tolist()
        return self.pixels[start : start + 3 * height * width].cpu().numpy().tobytes()

    def prepared(self, paper: Any, views: Any, workers: int) -> "PackedImages":
        """Itself.

        Raises:
            UserError: views that take images of one size alone.
        """
        call = views.forward if isinstance(views, nn.Module) else views
        if not accepted(call, {"sizes": None}):
            raise UserError(
                f"data.views: packed images have many sizes, and {name_of(views)} takes no "
                "argument 'sizes' (int64 [B, 2], height and width): give its call one, or "
                "subclass SimCLRViews"
            )
        return self

    def on(self, device: torch.device, room: float) -> "PackedImages":
        """The same images on another device, once for all parts of a split.

        Labels, sizes and plan stay on the CPU.
        """
        pixels = self._copies.get(device)
        if self.pixels.device == device or (pixels is None and self.pixels.nbytes > room):
            return self
        if pixels is None:  # what is there already is not copied
            pixels = self._copies[device] = self.pixels.to(device)
        return self._twin(pixels, torch.arange(len(self)), self.labels)

    def close(self) -> None:
        """Nothing to end."""

    def _twin(self, pixels: Tensor, index: Tensor, labels: Tensor) -> "PackedImages":
        names = None if self.names is None else [self.names[i] for i in index.tolist()]
        starts = self.starts[index]
        twin = PackedImages(pixels, self.sizes[index], starts, labels, names, self.file)
        twin._copies = self._copies
        return twin
