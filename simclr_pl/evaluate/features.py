"""Features of a whole split: each image once, on any number of ranks."""

from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from simclr_pl.batch import EvaluationOutput
from simclr_pl.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.distributed import gather_rows, row_counts


class Features(NamedTuple):
    """An encoded split, in the order of its images.

    Attributes:
        features: `float [N, D]`.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        index: `int64 [N]`, 0 to N - 1.
    """

    features: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's method gives way to the field


def collect(outputs: list[EvaluationOutput], device: torch.device) -> Features:
    """Puts together what all ranks have encoded.

    Args:
        outputs: of this rank's steps.
        device: of the collective operations.

    Returns:
        The whole split on the CPU, the same on every rank.
    """
    mine = {
        name: torch.cat([output[name] for output in outputs]).to(device)
        for name in ("features", "labels", "index")
    }
    counts = row_counts(len(mine["index"]), device)
    everyone = {name: gather_rows(part, counts).cpu() for name, part in mine.items()}
    order = everyone["index"].argsort()
    return Features(*(everyone[name][order] for name in ("features", "labels", "index")))


@torch.no_grad()
def encode(encoder: nn.Module, data: ContrastiveDataModule, split: Split) -> Features:
    """Encodes a split's clean images in this process, with a frozen encoder in eval mode.

    Args:
        encoder: `float [B, C, S, S]` to `[B, D]`.
        data: a data module that has been set up.
        split: train, val or test.
    """
    device = next(encoder.parameters()).device
    outputs = []
    was_training = encoder.training
    encoder.eval()
    for batch in data.evaluation_loader(split, "clean"):
        moved = batch._replace(images=batch.images.to(device))
        clean = data.make_clean(moved, views=False).clean
        outputs.append(
            EvaluationOutput(features=encoder(clean), labels=batch.labels, index=batch.index)
        )
    encoder.train(was_training)
    return collect(outputs, device)


_ENCODED: WeakKeyDictionary[L.Trainer, dict[tuple[int, Split], Features]] = WeakKeyDictionary()


def encode_once(trainer: L.Trainer, module: L.LightningModule, split: Split) -> Features:
    """`encode` by all ranks, once a step: monitors that want the same features share them.

    Args:
        trainer: at whose global step, with whose data module and precision.
        module: `forward` turns images into features.
        split: train, val or test.
    """
    known = _ENCODED.setdefault(trainer, {})
    key = (trainer.global_step, split)
    if key not in known:
        for old in [k for k in known if k[0] != trainer.global_step]:
            del known[old]
        with trainer.precision_plugin.forward_context():
            known[key] = encode(module, trainer.datamodule, split)  # type: ignore[attr-defined]
    return known[key]


class FeatureWriter(L.Callback):
    """Writes what `predict` encoded to one `.npz` file: `features`, `labels`, `index`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._outputs: list[EvaluationOutput] = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps this rank's outputs, in the computer's memory."""
        features, labels, index = (outputs[k].cpu() for k in ("features", "labels", "index"))
        self._outputs.append(EvaluationOutput(features=features, labels=labels, index=index))

    # Lightning's own BasePredictionWriter wants to know the loader's sampler, and warns without.
    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers all ranks' outputs; rank 0 writes them."""
        whole = collect(self._outputs, trainer.strategy.root_device)
        self._outputs = []
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                self.path,
                features=whole.features.float().numpy(),
                labels=whole.labels.numpy(),
                index=whole.index.numpy(),
            )
