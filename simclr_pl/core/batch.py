"""What rooms hand to each other: the contracts between data, model and evaluation.

Letters, everywhere in this package: `B` images on this rank, `N` images over all ranks, `V` views
of each (2 unless asked), `C` channels, `S` image side in pixels, `D` feature width, `P` projection
width, `W` ranks. Whatever has `VB` rows holds the first views of all images, then the second, ...
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from simclr_pl.core.errors import UserError

UNLABELLED = -1
"""The label of an image whose class is unknown, or must not be seen (the validation holdout)."""

UNGROUPED = -1
"""The group of an image that belongs to none: it is a group of its own."""

Cut = Literal["views", "clean", "both"]
"""What a batch is for: views, the clean image, or both."""


class Batch(NamedTuple):
    """A rank's slice of a global batch, as a loader yields it.

    Attributes:
        images: `[B, C, H, W]`, whole images, `uint8` or (of a `data.range`) `float32` in [0, 1]; or
            `[B, K, C, S, S]` where a worker process has already cut K crops from each decoded file:
            its views (K = V, training), the clean centre (K = 1, features), or views and the clean
            centre (K = V + 1, evaluation). Crops that the device turns are larger than S x S; the
            clean centre then lies in the top left corner.
        labels: `int64 [B]`, `UNLABELLED` where unknown.
        index: `int64 [B]`, the place of each image in its split: what its randomness hangs on.
        epoch: the epoch these images were drawn in.
        sizes: `int64 [B, 2]`, height and width in pixels of whole images of different sizes, which
            lie in the top left corner of `images`, with padding behind; `None` where they fill it.
        groups: `int64 [B]`, the group of each image (its patient, slide, place), `UNGROUPED` where
            it is a group of its own; `None` where the data set has no groups.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name
    epoch: int
    sizes: Tensor | None = None
    groups: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same on another device, all of it: views are drawn where `index` and `sizes` lie."""
        return Batch._make(p.to(device) if isinstance(p, Tensor) else p for p in self)

    def split(self, counts: Sequence[int]) -> list["Batch"]:
        """Consecutive parts of so many images."""
        n = len(counts)
        parts: Any = (p.split(counts) if isinstance(p, Tensor) else [p] * n for p in self)
        return list(map(Batch._make, zip(*parts, strict=True)))


class Views(NamedTuple):
    """Views of each image, normalised, on the device.

    Attributes:
        views: `float [VB, C, S, S]`, the first views of all images, then the second, ...
        labels: `int64 [VB]`, of each view's image; `UNLABELLED` where unknown.
        index: `int64 [VB]`, the place of each view's image in its split.
        epoch: the epoch these images were drawn in.
        counts: images of each rank in this step, where that is known without asking them.
        per_image: V, views of each image.
        groups: `int64 [VB]`, the group of each view's image; `None` where there are no groups.
    """

    views: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name
    epoch: int
    counts: Sequence[int] | None = None
    per_image: int = 2
    groups: Tensor | None = None


class MicroBatches(NamedTuple):
    """A training batch in parts, whose views are made when they are needed.

    An objective reads it as it reads `Views`, but for the pixels.

    Attributes:
        parts: this rank's images, in parts that go through the network one after the other.
        make_views: views of a part's images; the same bits each time.
        counts: images of each rank in this step, where that is known without asking them.
        per_image: V, views of each image.
    """

    parts: Sequence[Batch]
    make_views: Callable[[Batch], Views]
    counts: Sequence[int] | None = None
    per_image: int = 2

    @property
    def labels(self) -> Tensor:
        """`int64 [VB]`, of each view's image; `UNLABELLED` where unknown."""
        return torch.cat([part.labels for part in self.parts]).repeat(self.per_image)

    @property
    def index(self) -> Tensor:  # type: ignore[override]  # a tuple has a method of that name
        """`int64 [VB]`, the place of each view's image in its split."""
        return torch.cat([part.index for part in self.parts]).repeat(self.per_image)

    @property
    def groups(self) -> Tensor | None:
        """`int64 [VB]`, the group of each view's image; `None` where there are no groups."""
        found = [part.groups for part in self.parts if part.groups is not None]
        return torch.cat(found).repeat(self.per_image) if found else None

    @property
    def epoch(self) -> int:
        """The epoch these images were drawn in."""
        return self.parts[0].epoch

    @property
    def views(self) -> Tensor:
        """Not there: no more than a part's views exist at a time.

        Raises:
            UserError: always.
        """
        raise UserError(
            "an objective that reads pixels cannot be used with model.micro_batch_size: leave "
            "that option out, or give an objective that reads features and projections alone"
        )


class EvaluationBatch(NamedTuple):
    """Clean images for evaluation, with views where a contrastive loss is wanted as well.

    Attributes:
        clean: `float [B, C, S, S]`, the image without augmentation, normalised.
        views: of each image, or `None` in prediction.
        labels: `int64 [B]`, `UNLABELLED` where unknown.
        index: `int64 [B]`, the place of each image in its split.
    """

    clean: Tensor
    views: Views | None
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name


class StepOutput(TypedDict):
    """What a training step shows to callbacks. Everything but the loss is detached.

    Attributes:
        loss: scalar; its mean over ranks is the global loss.
        features: `[VB, D]`, the encoder's output for the first views, then for the second, ...
        projections: `[VB, P]`, the projector's output in the same order, not normalised.
        labels: `int64 [VB]`, of each view's image; `UNLABELLED` where unknown.
        positive_rank: `int64 [2B]`, how many negatives (of all ranks) are as near to the anchor as
            its positive, or nearer; 0 is a contrastive hit. `None` where the objective has none.
        chance: the loss of projections that say nothing; `None` where the objective states none.
    """

    loss: Tensor
    features: Tensor
    projections: Tensor
    labels: Tensor
    positive_rank: Tensor | None
    chance: float | None


class EvaluationOutput(TypedDict):
    """What a validation or test step shows to callbacks.

    Attributes:
        features: `[B, D]`, the encoder's output for the clean images.
        labels: `int64 [B]`, `UNLABELLED` where unknown.
        index: `int64 [B]`, the place of each image in its split.
    """

    features: Tensor
    labels: Tensor
    index: Tensor
