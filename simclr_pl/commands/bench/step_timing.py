"""Training steps timed: those of `fit`, and in turns with them the same without all around them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor

from simclr_pl.commands.bench.ceilings import synchronise
from simclr_pl.core.batch import Batch, MicroBatches, Views
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.model.objective import outcome_of
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.core.speed.micro_batches import encode_in_parts

TURNS = 5
"""Turns of real and bare steps, at least: a median needs a few."""

BLOCK = 0.25
"""Seconds of steps in a row that a turn measures; two steps where those take longer."""

WARM_UP = 3
"""Steps that don't count: they wait for memory, libraries and compilers."""


class Seconds(NamedTuple):
    """Seconds of a training step and its parts, measured in one turn.

    Attributes:
        real: a step of `fit`, with data, views, callbacks and logging.
        bare: the same on views in memory, without all that: network, loss, gradients, optimiser.
        waited: of the real one, for the loader.
        callbacks: of the real one, in callbacks; 0 without a profiler.
        views: making a batch's views.
        loss: its forward and backward.
        optimizer: its step.
    """

    real: float
    bare: float
    waited: float
    callbacks: float
    views: float
    loss: float
    optimizer: float


class Turns(L.Callback):
    """Measures steps of a `fit` and, in turns with them, bare ones.

    It belongs behind all other callbacks, so that their work counts. How long they take, it reads
    from the trainer's `SimpleProfiler`, where there is one.

    Args:
        raw: a batch as the loader hands it over.
        seconds: how long, about; `TURNS` turns at least.

    Attributes:
        measured: a step of each turn.
    """

    def __init__(self, raw: Batch, seconds: float) -> None:
        self.raw, self.seconds = raw, seconds
        self.measured: list[Seconds] = []
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
        self._callbacks, self._waited = _in_callbacks(trainer), _waited(trainer)
        self._start = self._now()

    def _warm_up(self, trainer: L.Trainer, model: SimCLR, batch: Views | MicroBatches) -> None:
        self._bare = BareStep(trainer, model, batch)
        with self._bare.without_learning():
            for _ in range(WARM_UP):
                seconds = self._time(self._bare)
            self._views(trainer)
        self._block = max(2, round(BLOCK / seconds))
        self._began = self._now()

    def _turn(self, trainer: L.Trainer) -> None:
        real = (self._now() - self._start) / self._block
        waited = (_waited(trainer) - self._waited) / self._block
        callbacks = (_in_callbacks(trainer) - self._callbacks) / self._block
        with self._bare.without_learning():
            seconds = Seconds(
                real=real,
                bare=self._time(self._bare, self._block),
                waited=waited,
                callbacks=callbacks,
                views=self._time(lambda: self._views(trainer)),
                loss=self._time(self._bare.loss_alone),
                optimizer=self._time(self._bare.optimizer.step),
            )
        self.measured.append(seconds)
        if len(self.measured) >= TURNS and self._now() - self._began > self.seconds:
            trainer.should_stop = True

    def _views(self, trainer: L.Trainer) -> None:
        data: ContrastiveDataModule = trainer.datamodule  # type: ignore[attr-defined]
        parts = self.raw.split(self._bare.sizes)
        for part in (*parts, *parts[:-1]):  # of micro-batches all but the last go through twice
            data.make_views(part)

    def _time(self, work: Callable[[], object], times: int = 1) -> float:
        start = self._now()
        for _ in range(times):
            work()
        return (self._now() - start) / times

    def _now(self) -> float:
        synchronise(self._device)
        return perf_counter()


class BareStep:
    """A training step on views that are there: network, loss, gradients, optimiser.

    Gradients are clipped where those of `fit` are.

    Args:
        trainer: with the optimiser and the precision.
        model: on its device.
        batch: whose views serve again and again.
    """

    def __init__(self, trainer: L.Trainer, model: SimCLR, batch: Views | MicroBatches) -> None:
        self.model, self.optimizer = model, trainer.optimizers[0]
        self.precision = trainer.precision_plugin
        self.clip: Any = trainer.gradient_clip_val
        self.clip_algorithm = GradClipAlgorithmType(trainer.gradient_clip_algorithm or "norm")
        parts = batch.parts if isinstance(batch, MicroBatches) else [batch]
        rows = [len(part.labels) for part in parts]
        self.sizes = rows if len(parts) > 1 else [rows[0] // batch.per_image]
        self.parts: Any = parts
        self.images: dict[int, Tensor] = {}
        for part in parts:
            views = part if isinstance(part, Views) else batch.make_views(part)  # type: ignore[union-attr]
            images = views.views.to(model.dtype, memory_format=torch.channels_last)
            self.images[id(part)] = images
        self.batch = batch
        with torch.no_grad():
            self.outputs = self._outputs()
        for output in self.outputs:
            output.requires_grad_()

    def _outputs(self) -> tuple[Tensor, Tensor]:
        """Features and projections."""
        with self.precision.forward_context():
            if len(self.parts) > 1:
                features = encode_in_parts(
                    self.model.encoder, self.parts, lambda part: self.images[id(part)]
                )
            else:
                features = self.model.encoder(self.images[id(self.parts[0])])
            projections: Tensor = self.model.projector(features)
        return features, projections

    def _loss(self, features: Tensor, projections: Tensor) -> Tensor:
        said = self.model.objective(features, projections, self.batch)
        return outcome_of(said, self.model.objective_name).loss

    def __call__(self) -> None:
        """Does it."""
        self.optimizer.zero_grad()
        self._loss(*self._outputs()).backward()
        if self.clip:
            self.precision.clip_gradients(self.optimizer, self.clip, self.clip_algorithm)
        self.optimizer.step()

    @contextmanager
    def without_learning(self) -> Iterator[None]:
        """A context: the same batch over and over would spoil the weights of the real steps."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def loss_alone(self) -> None:
        """Forward and backward of the loss."""
        self._loss(*self.outputs).backward()


def _in_callbacks(trainer: L.Trainer) -> float:
    """Seconds that callbacks have taken so far, `Turns` aside; 0 where no profiler looks."""
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, SimpleProfiler):
        return 0.0
    return sum(
        sum(durations)
        for name, durations in profiler.recorded_durations.items()
        if name.startswith("[Callback]") and Turns.__name__ not in name
    )


def _waited(trainer: L.Trainer) -> float:
    loader: Any = trainer.train_dataloader
    return float(loader.waited)
