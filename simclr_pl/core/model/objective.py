"""What a training step minimises: the contract of an objective, and the default one, NT-Xent.

An objective is called with the features and projections of all views, and the batch they are of.
Whatever else it wants it brings along: it may be a module with parameters of its own, which are
trained and saved with the model.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from simclr_pl.core.batch import MicroBatches, Views
from simclr_pl.core.distributed import row_counts
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Choice, check_call, construct
from simclr_pl.core.model.ntxent import NTXentLoss

OBJECTIVES = {"nt_xent": "simclr_pl.core.model.objective.NTXent"}
"""Names of objectives, and their class paths."""


class Sizes(NamedTuple):
    """What an objective is built for.

    Attributes:
        features: width D of the encoder's output.
        projections: width P of the projector's output.
        channels: C, of the images.
        image_size: side S of a view, in pixels.
    """

    features: int
    projections: int
    channels: int
    image_size: int


class Outcome(NamedTuple):
    """What an objective says of a batch.

    Attributes:
        loss: scalar, whose mean over ranks is the loss of the global batch, and whose gradient,
            averaged over ranks, is that loss's gradient.
        positive_rank: `int64 [VB]`, how many negatives are as near to each anchor as its positive,
            or nearer; `None` where there are no such things.
        chance: the loss of projections that say nothing; `None` where there is no such number.
        metrics: further scalars by name, each logged as `train/NAME`, the mean over ranks.
    """

    loss: Tensor
    positive_rank: Tensor | None = None
    chance: float | None = None
    metrics: Mapping[str, Tensor] = {}


class Objective(Protocol):
    """What is minimised. A function with these arguments is one, and so is a module."""

    def __call__(
        self, features: Tensor, projections: Tensor, batch: Views | MicroBatches
    ) -> Tensor | Outcome:
        """The loss of a batch on this rank.

        Args:
            features: `[VB, D]`, the encoder's output, first views before second ones.
            projections: `[VB, P]`, the projector's output in the same order, not normalised.
            batch: `views [VB, C, S, S]`, `labels` and `index` `int64 [VB]`, `epoch`, `per_image`
                (V), `groups` (`int64 [VB]`, or `None` where the data have no groups), and `counts`,
                the images of each rank where that is known. With micro-batches there are no
                `views`. What other ranks hold, the objective gathers by itself
                (`simclr_pl.core.distributed.gather_with_gradient`).
        """
        ...


class NTXent(nn.Module):
    """NT-Xent of two views (`NTXentLoss`), the objective of SimCLR.

    Args:
        temperature: divides cosine similarities; above 0.
        block_size: side of the loss's similarity blocks, in rows; no effect on results.
    """

    def __init__(self, temperature: float = 0.5, block_size: int = 512) -> None:
        super().__init__()
        self.loss = NTXentLoss(temperature, block_size)

    def forward(
        self, features: Tensor, projections: Tensor, batch: Views | MicroBatches
    ) -> Outcome:
        """The loss, and in training what its blocks know of each anchor.

        Raises:
            UserError: a batch of more than two views.
        """
        if batch.per_image != 2:
            raise UserError(
                f"model.objective nt_xent compares two views of an image, and data.views makes "
                f"{batch.per_image}: give an objective of your own"
            )
        first, second = projections.chunk(2)
        if not self.training:
            return Outcome(self.loss(first, second))
        counts: Sequence[int] = batch.counts or row_counts(len(first), first.device)
        loss, anchors = self.loss.with_statistics(first, second, counts)
        return Outcome(loss, anchors.positive_rank, math.log(2 * sum(counts) - 1))


def build_objective(choice: Choice, **offered: Any) -> Objective:
    """Makes an objective.

    Args:
        choice: a class, a function, or an object that is one already.
        offered: arguments that a class gets where its constructor names them.

    Raises:
        UserError: arguments that its constructor refuses, or something that cannot be called as
            an `Objective` is.
    """
    objective: Any = choice.target
    if isinstance(objective, type):
        objective = construct(choice, "model.objective", **offered)
    elif choice.args:
        objective = partial(objective, **choice.args)
    call = objective.forward if isinstance(objective, nn.Module) else objective
    wanted = "objective(features, projections, batch)"
    check_call(call, 3, f"model.objective {choice.name}", wanted)
    made: Objective = objective
    return made


def outcome_of(said: Any, name: str) -> Outcome:
    """What an objective returned, as an `Outcome`.

    Raises:
        UserError: neither a scalar nor an `Outcome` of one.
    """
    outcome = said if isinstance(said, Outcome) else Outcome(said)
    if not isinstance(outcome.loss, Tensor) or outcome.loss.dim():
        shape = [*outcome.loss.shape] if isinstance(outcome.loss, Tensor) else type(said).__name__
        raise UserError(
            f"model.objective {name} returned {shape}: return the loss, a tensor of no dimensions, "
            "or a simclr_pl.core.model.objective.Outcome with it"
        )
    return outcome
