"""What tests of the monitors share: a module that isn't SimCLR, and runs of it."""

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from commands import QUIET
from torch import Tensor, nn

from simclr_pl import ContrastiveDataModule, NTXentLoss
from simclr_pl.core.batch import EvaluationBatch, EvaluationOutput, StepOutput, Views


class Other(L.LightningModule):
    """Somebody's own method: batch norm, dropout from torch's generator, a part that is frozen."""

    def __init__(self, learning_rate: float = 0.05, temperature: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.learning_rate = learning_rate
        self.frozen = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.encoder = nn.Sequential(
            nn.Conv2d(4, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        )  # fmt: skip
        self.projector = nn.Linear(72, 16)
        self.loss: Any = NTXentLoss(temperature)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(self.frozen(images.to(self.dtype)))
        return features

    def on_train_start(self) -> None:
        self.frozen.eval()

    def training_step(self, batch: Views, batch_idx: int) -> StepOutput:
        assert not self.frozen.training
        features = self(batch.views)
        projections = self.projector(features)
        loss, anchors = self.loss.with_statistics(*projections.chunk(2))
        return StepOutput(
            loss=loss,
            features=features.detach(),
            projections=projections.detach(),
            labels=batch.labels,
            positive_rank=anchors.positive_rank,
            chance=math.log(2 * sum(batch.counts or [len(features) // 2]) - 1),
        )

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> EvaluationOutput:
        return EvaluationOutput(features=self(batch.clean), labels=batch.labels, index=batch.index)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9)


class Attraction(nn.Module):
    """A loss without negatives: whatever makes all images the same is best."""

    def with_statistics(self, z1: Tensor, z2: Tensor, counts: Any = None) -> tuple[Tensor, Any]:
        class Nothing:
            positive_rank = torch.zeros(2 * len(z1))

        return -F.cosine_similarity(z1, z2).mean(), Nothing


def digits(batch_size: int = 128) -> ContrastiveDataModule:
    """Views in which a digit stays one."""
    return ContrastiveDataModule(
        batch_size=batch_size,
        scale=(0.3, 1.0),
        flip=0.0,
        jitter=0.4,
        grayscale=0.0,
        blur=0.0,
        seed=0,
    )


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A quiet one, on the CPU."""
    more = {"num_sanity_val_steps": 0, "use_distributed_sampler": False}
    return L.Trainer(callbacks=list(callbacks), **(QUIET | more | options))
