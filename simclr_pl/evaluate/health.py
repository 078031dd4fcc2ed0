"""Is pretraining healthy? What the projections do on the sphere, and warnings where it goes wrong.

Alignment and uniformity are those of Wang & Isola 2020 (alpha = 2, t = 2), RankMe that of Garrido
et al. 2023. All numbers are over the images of all ranks, whatever their number.
"""

import math
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_pl.batch import EvaluationOutput, StepOutput
from simclr_pl.distributed import rank_and_world, row_counts, sum_over_ranks
from simclr_pl.errors import UserError
from simclr_pl.evaluate.trouble import WINDOW, Trouble, Window

PAIRED = 512
"""Images whose pairs make up uniformity: the first of the global batch, in the order of ranks.

With larger batches, micro-batches and several ranks, which images these are depends on the ranks.
"""


class StepHealth(NamedTuple):
    """What one step's outputs say, over all ranks.

    Attributes:
        positive_similarity: mean cosine of the two views of an image.
        negative_similarity: mean cosine of views of different images; 0 with one image.
        alignment: mean squared distance of positives on the unit sphere, 0 to 4; lower is better.
        uniformity: log of the mean of exp(-2 d^2) over pairs of images; lower is more spread out.
        feature_std: of features of length one: standard deviation, mean over dimensions, times
            the square root of their number. 1 is spread over the sphere, 0 is collapsed.
        projection_std: the same of projections.
        dimension: effective dimension of the projections, 1 for a line through the origin.
        images: N, the global batch.
    """

    positive_similarity: float
    negative_similarity: float
    alignment: float
    uniformity: float
    feature_std: float
    projection_std: float
    dimension: float
    images: int


@torch.no_grad()
def step_health(features: Tensor, projections: Tensor) -> StepHealth:
    """Computes it from sums of vectors: linear in the batch, and two small collectives.

    Args:
        features: `[2B, D]`, this rank's, first views before second ones.
        projections: `[2B, P]`, likewise.
    """
    h, z = _on_sphere(features), _on_sphere(projections)
    first, second = z.chunk(2)
    counts = row_counts(len(first), z.device)
    images, width = sum(counts), z.shape[1]
    parts = {
        "positive": (first * second).sum()[None],
        "distance": (first - second).square().sum()[None],
        "z": z.sum(0),
        "z2": z.square().sum(0),
        "h": h.sum(0),
        "h2": h.square().sum(0),
        "rows": _first_rows(first, counts).flatten(),
    }
    flat = sum_over_ranks(torch.cat([*parts.values()])).split([p.numel() for p in parts.values()])
    total = dict(zip(parts, flat, strict=True))
    # |sum of z|^2 is the sum over all pairs: less each with itself, less the positives.
    negative = total["z"].square().sum() - total["z2"].sum() - 2 * total["positive"]
    uniformity, dimension = _of_pairs(total["rows"].view(-1, width))
    numbers = [
        total["positive"] / images,
        negative / max(2 * images * (2 * images - 2), 1),
        total["distance"] / images,
        uniformity,
        _spread(total["h"], total["h2"], 2 * images),
        _spread(total["z"], total["z2"], 2 * images),
        dimension,
    ]
    return StepHealth._make([*torch.cat([n.reshape(1) for n in numbers]).tolist(), images])


def _on_sphere(rows: Tensor) -> Tensor:
    """In float64: variances of collapsed rows are differences of nearly equal numbers."""
    return F.normalize(_double(rows), dim=1)


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # MPS has no float64


def _first_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """This rank's part of the global batch's first rows, zero elsewhere: the sum is all of them."""
    table = rows.new_zeros(min(sum(counts), PAIRED), rows.shape[1])
    start = sum(counts[: rank_and_world()[0]])
    place = table[start : start + len(rows)]
    place += rows[: len(place)]
    return table


def _of_pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Uniformity, and the effective dimension: (sum of eigenvalues)^2 / sum of their squares."""
    cosine = rows @ rows.T
    # exp(-2 d^2), d^2 = 2 - 2 cosine; without the rows' pairs with themselves.
    pairs = len(rows) * (len(rows) - 1)
    close = (4 * cosine - 4).exp()
    uniformity = ((close.sum() - close.diagonal().sum()) / max(pairs, 1)).log()
    return uniformity, cosine.diagonal().sum().square() / cosine.square().sum().clamp(min=1e-30)


def _spread(total: Tensor, squares: Tensor, rows: int) -> Tensor:
    variance = squares / rows - (total / rows).square()
    return variance.clamp(min=0).sqrt().mean() * math.sqrt(len(total))


def rankme(gram: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values, divided by their sum.

    Source: Garrido et al. 2023, equation 1. Singular values that are zero but for rounding count
    as zero, instead of the paper's epsilon.

    Args:
        gram: `float64 [D, D]`, features transposed times features.

    Returns:
        1 (all features on a line) to D, or to the number of images where those are fewer; NaN of
        features that are no numbers.
    """
    if not bool(gram.isfinite().all()):
        return math.nan
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    values = values[values > values.max() * len(gram) * torch.finfo(gram.dtype).eps].sqrt()
    share = values / values.sum()
    return float((-share * share.log()).sum().exp())


class HealthMonitor(L.Callback):
    """Logs `health/...` while training, and warns once each of what needs a hand.

    Every so many steps, and on the first: `loss_over_chance` (the loss less log(2N - 1)),
    `positive_similarity`, `negative_similarity`, `alignment`, `uniformity`, `feature_std`,
    `projection_std`; and with each validation `rankme`, of the split's clean images. Warns of
    collapse, a loss stuck at chance, and divergence, once each in a run, also over a resume. Works
    with any module whose steps return `StepOutput` and `EvaluationOutput`. Between those steps the
    device is not waited for.

    Args:
        every_n_steps: how often, in optimiser steps; 0 turns it off.

    Raises:
        UserError: a number below 0.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 0:
            raise UserError(f"health.every_n_steps is {every_n_steps}, but must be 0 (off) or more")
        self.every_n_steps = every_n_steps
        self._trouble = Trouble()
        self._loss: Tensor | None = None  # this rank's sum over the window
        self._steps = 0  # of the window
        self._gram: Tensor | None = None

    # Training -------------------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: StepOutput,  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds up the loss, and looks when it is time."""
        if not self.every_n_steps:
            return
        loss = outputs["loss"].detach()
        self._loss = loss.clone() if self._loss is None else self._loss.to(loss) + loss
        self._steps += 1
        if trainer.global_step == 1 or trainer.global_step % self.every_n_steps == 0:
            self._look(trainer, pl_module, outputs)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: StepOutput) -> None:
        health = step_health(outputs["features"], outputs["projections"])
        chance = math.log(max(2 * health.images - 1, 1))
        assert self._loss is not None
        losses = sum_over_ranks(torch.stack([outputs["loss"].detach(), self._loss]))
        loss, total = (losses / rank_and_world()[1]).tolist()
        numbers = {"loss_over_chance": loss - chance, **health._asdict()}
        del numbers["images"], numbers["dimension"]
        _log(trainer, pl_module, {f"health/{name}": value for name, value in numbers.items()})
        if self._steps < WINDOW:
            return
        window = Window(
            total / self._steps,
            chance,
            health.feature_std,
            health.projection_std,
            health.dimension,
            health.images,
            trainer.global_step,
        )
        self._loss, self._steps = None, 0
        for sentence in self._trouble.look(window):
            if trainer.is_global_zero:
                trainer.print(sentence)

    # Validation -----------------------------------------------------------------------------------

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: EvaluationOutput,  # type: ignore[override]
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds this batch's features to the Gram matrix."""
        if self.every_n_steps and not trainer.sanity_checking:
            rows = _double(outputs["features"])
            gram = rows.T @ rows
            self._gram = gram if self._gram is None else self._gram + gram

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs RankMe over all ranks' images."""
        gram, self._gram = self._gram, None
        if gram is not None:
            # The same number on all ranks, whose maximum has no rounding.
            many = rank_and_world()[1] > 1
            value = rankme(sum_over_ranks(gram))
            pl_module.log("health/rankme", value, sync_dist=many, reduce_fx="max")

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What has been seen and said, and the window's loss, the mean over ranks."""
        loss = None
        if self._loss is not None:
            loss = float(sum_over_ranks(self._loss.clone())) / rank_and_world()[1]
        return {"trouble": dict(self._trouble.state), "loss": loss, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from there, on any number of ranks: the first keeps the loss for all."""
        self._trouble.state = dict(state_dict["trouble"])
        self._steps, loss = state_dict["steps"], state_dict["loss"]
        rank, world = rank_and_world()
        share = world if rank == 0 else 0
        self._loss = None if loss is None else torch.tensor(loss * share, dtype=torch.float64)


def _log(trainer: L.Trainer, pl_module: L.LightningModule, numbers: dict[str, float]) -> None:
    """Logs now: Lightning would only on steps that `log_every_n_steps` divides, and lose others."""
    for name, value in numbers.items():
        pl_module.log(name, value, logger=False)  # for other callbacks
    for logger in trainer.loggers:
        logger.log_metrics(
            {**numbers, "epoch": trainer.current_epoch}, step=trainer.global_step - 1
        )
