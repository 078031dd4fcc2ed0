"""Training steps timed: those of `fit`, and in turns with them the same without all around them."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from simclr_pl.batch import Batch, MicroBatches, Views
from simclr_pl.data.datamodule import ContrastiveDataModule
from simclr_pl.model.micro_batches import encode_in_parts
from simclr_pl.model.simclr import SimCLR
from simclr_pl.tools.limits import synchronise

TURNS = 5
"""Of real and bare steps, at least: medians want a few."""

BLOCK = 0.25
"""Seconds of steps in a row that a turn measures; two steps where those take longer."""

WARM_UP = 3
"""Steps that don't count: they wait for memory, libraries and compilers."""


class Steps(NamedTuple):
    """What was measured of training steps: seconds each, a number a turn.

    Attributes:
        real: of `fit`, with data, views, callbacks and logging.
        bare: the same on views in memory, without all that: network, loss, gradients, optimiser.
        waited: of the real ones, for the loader.
        views: making a batch's views.
        loss: its forward and backward.
        optimizer: its step.
    """

    real: list[float]
    bare: list[float]
    waited: list[float]
    views: list[float]
    loss: list[float]
    optimizer: list[float]


class Turns(L.Callback):
    """Measures steps of a `fit` and, in turns with them, bare ones.

    It belongs behind all other callbacks, so that their work counts.

    Args:
        raw: a batch as the loader hands it over.
        seconds: how long, about; `TURNS` turns at least.
    """

    def __init__(self, raw: Batch, seconds: float) -> None:
        self.raw, self.seconds = raw, seconds
        self.steps = Steps([], [], [], [], [], [])
        self._done = self._block = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Moves the batch to where views are made."""
        self._device = trainer.strategy.root_device
        data: ContrastiveDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.raw = data.transfer_batch_to_device(self.raw, self._device, 0)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Views | MicroBatches,
        batch_idx: int,
    ) -> None:
        """Ends a block of real steps, and does as many bare ones."""
        assert isinstance(pl_module, SimCLR)
        self._done += 1
        if self._done < (self._block or WARM_UP):
            return
        if self._block:
            self._turn(trainer)
        else:
            self._warm_up(trainer, pl_module, batch)
        self._done = 0
        self._waited, self._start = _waited(trainer), self._now()

    def _warm_up(self, trainer: L.Trainer, model: SimCLR, batch: Views | MicroBatches) -> None:
        self._bare = BareStep(trainer, model, batch)
        for _ in range(WARM_UP):
            seconds = self._time(self._bare)
        self._block = max(2, round(BLOCK / seconds))
        self._parts(trainer)
        self._began = self._now()

    def _turn(self, trainer: L.Trainer) -> None:
        steps = self.steps
        steps.real.append((self._now() - self._start) / self._block)
        steps.waited.append((_waited(trainer) - self._waited) / self._block)
        rates = [group["lr"] for group in self._bare.optimizer.param_groups]
        self._set_rates([0.0] * len(rates))  # the same batch over and over would spoil the weights
        steps.bare.append(self._time(self._bare, self._block))
        for values, seconds in zip(steps[3:], self._parts(trainer), strict=True):
            values.append(seconds)
        self._set_rates(rates)
        if len(steps.real) >= TURNS and self._now() - self._began > self.seconds:
            trainer.should_stop = True

    def _set_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self._bare.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _parts(self, trainer: L.Trainer) -> list[float]:
        data: ContrastiveDataModule = trainer.datamodule  # type: ignore[attr-defined]
        raw, sizes = self.raw, self._bare.sizes
        return [
            self._time(lambda: [data.make_views(part) for part in raw.split(sizes)]),
            self._time(self._bare.loss_alone),
            self._time(self._bare.optimizer.step),
        ]

    def _time(self, work: Callable[[], object], times: int = 1) -> float:
        start = self._now()
        for _ in range(times):
            work()
        return (self._now() - start) / times

    def _now(self) -> float:
        synchronise(self._device)
        return perf_counter()


class BareStep:
    """A training step on views that are there: network, loss, gradients, optimiser, no more.

    Args:
        trainer: with the optimiser and the precision.
        model: on its device.
        batch: whose views serve again and again.
    """

    def __init__(self, trainer: L.Trainer, model: SimCLR, batch: Views | MicroBatches) -> None:
        self.model, self.optimizer = model, trainer.optimizers[0]
        self.precision = trainer.precision_plugin
        parts = batch.parts if isinstance(batch, MicroBatches) else [batch]
        self.sizes = [len(part.labels) for part in parts]
        self.parts: Any = parts
        self.images: dict[int, Tensor] = {}
        for part in parts:
            views = part if isinstance(part, Views) else batch.make_views(part)  # type: ignore[union-attr]
            images = views.both.to(model.dtype, memory_format=torch.channels_last)
            self.images[id(part)] = images
        with torch.no_grad():
            self.projections = self._projections()
        self.projections.requires_grad_()

    def _projections(self) -> Tensor:
        with self.precision.forward_context():
            if len(self.parts) > 1:
                features = encode_in_parts(
                    self.model.encoder, self.parts, lambda part: self.images[id(part)]
                )
            else:
                features = self.model.encoder(self.images[id(self.parts[0])])
            projections: Tensor = self.model.projector(features)
        return projections

    def __call__(self) -> None:
        """Does it."""
        self.optimizer.zero_grad()
        self.model.loss(*self._projections().chunk(2)).backward()
        self.optimizer.step()

    def loss_alone(self) -> None:
        """Forward and backward of the loss."""
        self.model.loss(*self.projections.chunk(2)).backward()


def _waited(trainer: L.Trainer) -> float:
    loader: Any = trainer.train_dataloader
    return float(loader.waited)
