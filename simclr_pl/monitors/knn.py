"""kNN classification of the validation split, while a network trains."""

from typing import Any

import lightning as L
import torch

from simclr_pl.core.batch import UNLABELLED, EvaluationOutput
from simclr_pl.core.distributed import sum_over_ranks
from simclr_pl.core.errors import check
from simclr_pl.monitors.moments import due
from simclr_pl.protocols.features import EncodesSplits, encode_once
from simclr_pl.protocols.knn import knn_hits
from simclr_pl.protocols.scoring import check_above_zero


class KNNMonitor(EncodesSplits):
    """kNN of the validation split's clean images against the training split's, while training.

    Every `every_n_epochs` epochs, and after the last, all ranks encode the training split anew
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
        self, every_n_epochs: int = 10, k: tuple[int, ...] = (20, 200), temperature: float = 0.07
    ) -> None:
        super().__init__("knn", every_n_epochs)
        check_above_zero("knn.k", k)
        check(temperature > 0, "knn.temperature", temperature, "above 0")
        self.k, self.temperature = tuple(k), temperature
        self._outputs: list[EvaluationOutput] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drops what an interrupted validation has left."""
        self._outputs = []

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: EvaluationOutput, *_: Any
    ) -> None:
        """Keeps this rank's features and labels."""
        if due(trainer, self.every_n_epochs):
            self._outputs.append(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Classifies the kept images, and logs the accuracies over all ranks."""
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
