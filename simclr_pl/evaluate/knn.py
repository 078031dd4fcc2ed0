"""Weighted k-nearest-neighbour classification of features (Wu et al. 2018, section 3.4).

The k training images nearest to an image in cosine similarity s vote for their classes, each with
weight exp(s / temperature). Nothing is trained, so that the number depends on the features alone.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from simclr_pl.batch import UNLABELLED, EvaluationOutput
from simclr_pl.distributed import sum_over_ranks
from simclr_pl.errors import UserError
from simclr_pl.evaluate.features import check_splits, encode_once, forget
from simclr_pl.model.ending import is_last

QUERIES, BANK = 1024, 16384
"""Rows and columns of the similarities that exist at a time: 64 MiB of float32."""


@torch.no_grad()
def neighbours(
    queries: Tensor, bank: Tensor, k: int, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest rows of a bank, in blocks: memory doesn't grow with either side.

    Args:
        queries: `[Q, D]`; on their device the work is done.
        bank: `[N, D]`, on any device: moved in blocks.
        k: how many; all where there are fewer.
        rows: `int64 [M]`, the bank's rows that may be neighbours (default: all).

    Returns:
        Cosine similarities `[Q, k]`, nearest first, and the rows' places in the bank, `int64
        [Q, k]`.
    """
    rows = torch.arange(len(bank)) if rows is None else rows
    best = []
    for part in F.normalize(queries, dim=1).split(QUERIES):
        similarity = part.new_empty(len(part), 0)
        place = torch.empty(len(part), 0, dtype=torch.int64, device=part.device)
        for some in rows.split(BANK):
            block = F.normalize(bank[some].to(part), dim=1)
            near, where = (part @ block.T).topk(min(k, len(block)), dim=1)
            similarity = torch.cat([similarity, near], 1)
            place = torch.cat([place, some.to(part.device)[where]], 1)
            similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
            place = place.gather(1, order)
        best.append((similarity, place))
    similarities, places = zip(*best, strict=True)
    return torch.cat(similarities), torch.cat(places)


def vote(similarity: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """Each class's share of the weighted votes.

    Args:
        similarity: `[Q, k]`, nearest first.
        labels: `int64 [Q, k]`, the neighbours' classes.
        temperature: divides similarities; above 0.
        classes: how many there are.

    Returns:
        `[Q, classes]`, up to a factor for each query.
    """
    # Relative to the nearest: a small temperature would overflow otherwise.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    return weight.new_zeros(len(labels), classes).scatter_add_(1, labels, weight)


class KNNMonitor(L.Callback):
    """kNN of the validation split's clean images against the training split's, while training.

    Every so many epochs, and after the last, the training split is encoded anew by all ranks
    (clean images, encoder in eval mode), and each rank classifies its share of the validation
    images. Logs `knn/val_top1` for the first k, and `knn<k>/val_top1` for others. Works with any
    module whose `forward` gives features and whose validation step returns `EvaluationOutput`;
    without labels it does nothing.

    Source: Wu et al. 2018, section 3.4 (k = 200, temperature 0.07).

    Args:
        every_n_epochs: how often, in epochs that are validated; 0 turns it off.
        k: numbers of neighbours.
        temperature: of the votes' weights.

    Raises:
        UserError: a value out of its range; at setup, data that are no `ContrastiveDataModule`.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        k: tuple[int, ...] = (20, 200),
        temperature: float = 0.07,
    ) -> None:
        if every_n_epochs < 0:
            raise UserError(f"knn.every_n_epochs is {every_n_epochs}, but must be 0 (off) or more")
        if not k or min(k) < 1:
            raise UserError(f"knn.k is {list(k)}, but must be one or more numbers above 0")
        if not temperature > 0:
            raise UserError(f"knn.temperature is {temperature}, but must be above 0")
        self.every_n_epochs, self.k, self.temperature = every_n_epochs, tuple(k), temperature
        self._outputs: list[EvaluationOutput] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Looks at the data before training, and forgets a validation that was broken off."""
        self._outputs = []
        forget(trainer)
        if stage == "fit" and self.every_n_epochs:
            check_splits(trainer, "KNNMonitor")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: EvaluationOutput,  # type: ignore[override]
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps this rank's features and labels."""
        if due(trainer, self.every_n_epochs):
            self._outputs.append(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Classifies them, and logs the accuracies over all ranks."""
        outputs, self._outputs = self._outputs, []
        if not outputs or not getattr(trainer.datamodule, "num_classes", 0):  # type: ignore[attr-defined]
            return
        train = encode_once(trainer, pl_module, "train")
        hits = knn_hits(
            torch.cat([output["features"] for output in outputs]),
            torch.cat([output["labels"] for output in outputs]),
            train.features,
            train.labels,
            self.k,
            self.temperature,
        )
        *right, total = sum_over_ranks(hits).tolist()
        if not total or not bool((train.labels != UNLABELLED).any()):
            return
        for number, k in enumerate(self.k):
            name = f"knn{k}/val_top1" if number else "knn/val_top1"
            # The same number on all ranks, whose maximum has no rounding.
            many = trainer.world_size > 1
            pl_module.log(name, right[number] / total, sync_dist=many, reduce_fx="max")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets go of the training split's features."""
        forget(trainer)


def knn_hits(
    queries: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
) -> Tensor:
    """How many labelled queries are classified right with each k, and their number last.

    What has no numbers as features, or for neighbours, is not right.

    Args:
        queries: `[Q, D]`; on their device, in float32 at least, the work is done.
        labels: `int64 [Q]`, `UNLABELLED` where unknown: those don't count.
        bank: `[N, D]`, on any device.
        bank_labels: `int64 [N]`; unlabelled rows are nobody's neighbours.
        ks: numbers of neighbours, all of the bank where it has fewer.
        temperature: of the votes' weights.

    Returns:
        `[len(ks) + 1]`, counts on the queries' device.
    """
    known, scored = (bank_labels != UNLABELLED).nonzero()[:, 0], labels != UNLABELLED
    wide = torch.promote_types(queries.dtype, torch.float32)
    queries, labels = queries[scored].to(wide), labels[scored]
    similarity, place = neighbours(queries, bank, max(ks), known)
    # Numbered by their order: labels may be as large as identifiers are.
    classes, numbers = (part.to(labels.device) for part in bank_labels.unique(return_inverse=True))
    near, counts = numbers[place], []
    for k in ks:
        shares = vote(similarity[:, :k], near[:, :k], temperature, len(classes))
        right = (classes[shares.argmax(1)] == labels) & shares.isfinite().all(1)
        counts.append(right.sum())
    return torch.stack([*counts, scored.sum()])


def due(trainer: L.Trainer, every_n_epochs: int) -> bool:
    """Whether a monitor's turn has come: each so many epochs of training, and at its end."""
    if not every_n_epochs or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
        return False
    return is_last(trainer) or (trainer.current_epoch + 1) % every_n_epochs == 0
