"""Which images come when, and on which rank: plans of batches, and the loaders that follow them.

A plan is worked out for the global batch and then cut into ranks, so that what is trained on
does not depend on how many there are.
"""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED, Batch, Cut
from simclr_pl.core.data.sources import Source
from simclr_pl.core.distributed import shard
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.randomness import epoch_order


class TrainLoader:
    """Global batches of an epoch in its order, this rank's slice of each.

    A short last batch is dropped.

    Its state is the number of batches handed out, for a resume in mid-epoch. The epoch is asked for
    when the first batch is: Lightning makes iterators before it has restored its own counters.

    With micro-batches, each of them is a run of the global batch's order, shared by the ranks: what
    goes through the network together does not depend on how many ranks there are.

    Args:
        source: the images.
        batch_size: global images a step.
        rank: this process.
        world: number of processes.
        seed: of the order.
        epoch: tells the current epoch.
        epochs: number of the last epoch and one, where there is one: nothing is expected behind it.
        micro_batches: parts of equal size (but for one image) that a global batch is cut into.
        same_every_epoch: the order and views of epoch 0 in all of them, for overfitting on purpose.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        epoch: Callable[[], int],
        *,
        epochs: int | None = None,
        micro_batches: int = 1,
        same_every_epoch: bool = False,
    ) -> None:
        self.source, self.batch_size, self.seed, self.epoch = source, batch_size, seed, epoch
        micros = torch.arange(batch_size).tensor_split(micro_batches)
        shares = [micro[shard(len(micro), rank, world)] for micro in micros]
        self.rows = torch.cat(shares)
        self.parts = [len(share) for share in shares]
        """How many of this rank's images belong to each micro-batch, in the order of `rows`."""
        self.counts = [
            sum(len(micro[shard(len(micro), each, world)]) for micro in micros)
            for each in range(world)
        ]
        """How many images of a batch each rank has."""
        self.epochs, self.same_every_epoch = epochs, same_every_epoch
        self.waited = 0.0
        """Seconds that this process has waited for its source, in all passes together."""
        self._place = {"epoch": 0, "batches": 0}
        self._loaded: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.source) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch()
        if epoch + 1 != self.epochs and hasattr(self.source, "expect"):
            self.source.expect(partial(self._plan, epoch + 1))
        plan, drawn = self._plan(epoch)
        # A loaded place serves one pass, and only its own epoch: every other pass is a whole one.
        place, self._loaded = self._loaded, None
        start = place["batches"] if place and place["epoch"] == epoch else 0
        batches = self._timed(self.source.batches(plan[start:], drawn, "views", training=True))
        for done, batch in enumerate(batches, start + 1):
            self._place = {"epoch": epoch, "batches": done}
            yield batch

    def _plan(self, epoch: int) -> tuple[tuple[Tensor, ...], int]:
        """This rank's rows of each batch, and the epoch that order and views are of."""
        drawn = 0 if self.same_every_epoch else epoch
        order = epoch_order(self.seed, drawn, len(self.source))[: len(self) * self.batch_size]
        order = order.view(-1, self.batch_size)
        if len(self.rows) < self.batch_size:  # then this rank keeps its own part alone
            order = order[:, self.rows]
        return order.unbind(), drawn

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time they take added to `waited`."""
        while True:
            asked = perf_counter()
            batch = next(batches, None)
            self.waited += perf_counter() - asked
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and batches of it that were handed out."""
        return dict(self._place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues behind the batches that were handed out."""
        self._place, self._loaded = dict(state), dict(state)


class EvaluationLoader:
    """Each image of a split once, or of a part of it, in global batches that differ by one at most.

    The batches are those of one process whatever the number of ranks, which share each of them
    without padding: an evaluation on any hardware sees each image once, with the same negatives.

    Args:
        source: the images.
        batch_size: global images a batch, at most (one more where an image would be left
            alone, without negatives).
        rank: this process.
        world: number of processes.
        cut: whether clean images, views or both are wanted.
        rows: `int64 [N]`, places of the images that are wanted (default: all).
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        rank: int,
        world: int,
        cut: Cut,
        rows: Tensor | None = None,
    ) -> None:
        self.source, self.cut = source, cut
        rows = torch.arange(len(source)) if rows is None else rows
        count = -(-len(rows) // batch_size)
        if batch_size > 1:
            count = max(1, min(count, len(rows) // 2))
        batches = rows.tensor_split(count)
        self.plan: list[Tensor] = [batch[shard(len(batch), rank, world)] for batch in batches]

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        return self.source.batches(self.plan, 0, self.cut)


def check_batch(batch_size: int, world: int) -> None:
    """Whether each rank gets two images of a batch.

    Raises:
        UserError: it doesn't.
    """
    wanted = f"at least {2 * world}: two images for each of {world} devices"
    check(batch_size >= 2 * world, "data.batch_size", batch_size, wanted)


def count_micro_batches(batch_size: int, size: int | None, world: int) -> int:
    """How many micro-batches of at most `size` images make a batch; `None`: the batch is one.

    Raises:
        UserError: ranks that would have no image in one of them.
    """
    count = -(-batch_size // (size or batch_size))
    wanted = f"at least {2 * world}, so that each of {world} devices has an image"
    check(batch_size // count >= world, "model.micro_batch_size", size, wanted)
    return count


def scored_rows(labels: Tensor, split: str, world: int, *, labelled_only: bool) -> Tensor:
    """Places of a split's images that are evaluated: `int64 [N]`.

    Args:
        labels: of the split.
        split: its name.
        world: number of processes.
        labelled_only: leave out unlabelled images, if there are labelled ones for all ranks.

    Raises:
        UserError: fewer than 2 images a rank.
    """
    if len(labels) < 2 * world:
        raise UserError(
            f"the {split} split has {len(labels)} images, too few for {world} "
            f"device{'s'[: world > 1]}, which need 2 each: give more images or fewer devices"
        )
    known = (labels != UNLABELLED).nonzero()[:, 0]
    return known if labelled_only and len(known) >= 2 * world else torch.arange(len(labels))
