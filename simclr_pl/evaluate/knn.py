"""Weighted k-nearest-neighbour classification of features (Wu et al. 2018, section 3.4).

The k training images nearest to an image in cosine similarity s vote for their classes, each with
weight exp(s / temperature). Nothing is trained, so that the number depends on the features alone.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_pl.batch import UNLABELLED, EvaluationOutput
from simclr_pl.distributed import sum_over_ranks
from simclr_pl.errors import UserError
from simclr_pl.evaluate.features import encode_once

QUERIES, BANK = 1024, 16384
"""Rows and columns of the similarities that exist at a time: 64 MiB of float32."""


@torch.no_grad()
def neighbours(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of a bank, in blocks: memory doesn't grow with either side.

    Args:
        queries: `[Q, D]`; on their device the work is done.
        bank: `[N, D]`, on any device: moved in blocks.
        k: how many; all of the bank where it has fewer.

    Returns:
        Cosine similarities `[Q, k]`, nearest first, and the rows' places in the bank, `int64
        [Q, k]`.
    """
    best = []
    for rows in F.normalize(queries, dim=1).split(QUERIES):
        similarity = rows.new_empty(len(rows), 0)
        place = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
        for start in range(0, len(bank), BANK):
            block = F.normalize(bank[start : start + BANK].to(rows), dim=1)
            near, where = (rows @ block.T).topk(min(k, len(block)), dim=1)
            similarity = torch.cat([similarity, near], 1)
            place = torch.cat([place, where + start], 1)
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
        UserError: a value out of its range.
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
        if not outputs or not trainer.datamodule.num_classes:  # type: ignore[attr-defined]
            return
        train = encode_once(trainer, pl_module, "train")
        hits = knn_hits(
            torch.cat([output["features"] for output in outputs]).float(),
            torch.cat([output["labels"] for output in outputs]),
            train.features.float(),
            train.labels,
            self.k,
            self.temperature,
        )
        *right, total = sum_over_ranks(hits).tolist()
        for number, k in enumerate(self.k):
            name = f"knn{k}/val_top1" if number else "knn/val_top1"
            pl_module.log(name, right[number] / max(total, 1), sync_dist=trainer.world_size > 1)


def knn_hits(
    queries: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
) -> Tensor:
    """How many labelled queries are classified right with each k, and their number last.

    Returns:
        `float64 [len(ks) + 1]`, on the queries' device.
    """
    known, scored = bank_labels != UNLABELLED, labels != UNLABELLED
    bank, bank_labels = bank[known], bank_labels[known].to(queries.device)
    queries, labels = queries[scored], labels[scored]
    similarity, place = neighbours(queries, bank, max(ks))
    classes = int(bank_labels.max()) + 1
    hits = [
        (
            vote(similarity[:, :k], bank_labels[place[:, :k]], temperature, classes).argmax(1)
            == labels
        )
        for k in ks
    ]
    counts = [h.sum() for h in hits] + [scored.sum()]
    return torch.stack(counts).double()


def due(trainer: L.Trainer, every_n_epochs: int) -> bool:
    """Whether a monitor's turn has come: each so many epochs of training, and at its end."""
    if not every_n_epochs or trainer.state.fn != "fit" or trainer.sanity_checking:
        return False
    done = trainer.current_epoch + 1
    return done % every_n_epochs == 0 or done == trainer.max_epochs
