"""Features: of a whole split, each image once on any number of ranks, and of an epoch's crops."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from simclr_pl.core.batch import EvaluationOutput
from simclr_pl.core.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.core.distributed import gather_rows, row_counts
from simclr_pl.core.errors import UserError, check
from simclr_pl.writing import make_folder, whole

GATHERED = 8192
"""Rows of a rank that travel at a time: a large split fits a computer's memory, not a device's."""


class Features(NamedTuple):
    """An encoded split, or its labelled images, in the order of the split.

    Attributes:
        features: `float [N, D]`.
        labels: `int64 [N]`, `UNLABELLED` where unknown.
        index: `int64 [N]`, places in the split, rising: 0 to N - 1 of a whole one.
    """

    features: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's method gives way to the field


def collect(outputs: list[EvaluationOutput], device: torch.device) -> Features:
    """Puts together the features of all ranks.

    Args:
        outputs: of this rank's steps.
        device: where the collective operations run.

    Returns:
        The whole split on the CPU, the same on every rank.
    """
    labels, index = (torch.cat([o[k] for o in outputs]).to(device) for k in ("labels", "index"))
    features = torch.cat([output["features"] for output in outputs])
    counts = row_counts(len(index), device)
    everyones = gather_rows(index, counts).cpu()
    order = everyones.argsort()
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    whole = features.new_empty(len(order), *features.shape[1:], device="cpu")
    starts = [sum(counts[:rank]) for rank in range(len(counts))]
    for begin in range(0, max(counts), GATHERED):
        parts = [min(max(count - begin, 0), GATHERED) for count in counts]
        block = gather_rows(features[begin : begin + GATHERED].to(device), parts).cpu()
        ranks = zip(starts, parts, strict=True)
        whole[torch.cat([place[start + begin :][:rows] for start, rows in ranks])] = block
    return Features(whole, gather_rows(labels, counts).cpu()[order], everyones[order])


@torch.no_grad()
def encode(
    encoder: nn.Module, data: ContrastiveDataModule, split: Split, *, labelled_only: bool = False
) -> Features:
    """Encodes a split's clean images in this process, with a frozen encoder in eval mode.

    Args:
        encoder: `float [B, C, S, S]` to `[B, D]`.
        data: a data module that has been set up.
        split: train, val or test.
        labelled_only: leave out unlabelled images (of too few labelled ones, all are encoded).
    """
    device = next(encoder.parameters()).device
    outputs = []
    with in_eval_mode(encoder):
        for batch in data.evaluation_loader(split, "clean", labelled_only=labelled_only):
            features = encoder(data.make_clean(batch.to(device), views=False).clean).cpu()
            outputs.append(
                EvaluationOutput(features=features, labels=batch.labels, index=batch.index)
            )
    return collect(outputs, device)


@torch.no_grad()
def encode_crops(
    encoder: nn.Module, data: ContrastiveDataModule, rows: Tensor, epoch: int
) -> Tensor:
    """Encodes one view of each of some training images, with a frozen encoder in eval mode.

    Args:
        encoder: `float [B, C, S, S]` to `[B, D]`.
        data: a data module that has been set up, whose views are made.
        rows: `int64 [N]`, places in the training split.
        epoch: of the views; the same epoch gives the same ones.

    Returns:
        `[N, D]`, on the encoder's device.

    Raises:
        UserError: a file that cannot be read.
    """
    device = next(encoder.parameters()).device
    source = data.evaluation_loader("train", "views").source
    features = []
    with in_eval_mode(encoder):
        for batch in source.batches(rows.split(data.batch_size), epoch, "views"):
            moved = batch.to(device)
            views = data.views.one(moved.images, moved.index, epoch, moved.sizes)
            features.append(encoder(views))
    whole = torch.cat(features)
    if len(whole) < len(rows):
        raise UserError(
            f"{len(rows) - len(whole)} images of train cannot be read, and crops are made of all: "
            f"remove those that python -m simclr_pl pack {data.root} --check lists"
        )
    return whole


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode, and every part of it back into its own afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:  # one by one: parts may have been frozen on purpose
            part.training = training


def accelerator() -> torch.device:
    """Where commands encode: the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_ENCODED: WeakKeyDictionary[L.Trainer, dict[tuple[int, Split], Features]] = WeakKeyDictionary()


class EncodesSplits(L.Callback):
    """A monitor that encodes whole splits at a validation; all such monitors share the features.

    They call `encode_once` in `on_validation_epoch_end`; the features are freed behind that.

    Args:
        option: name of the command line's group of options, for errors.
        every_n_epochs: epochs from one validation with features to the next; 0 turns it off.

    Raises:
        UserError: a number below 0; at setup, data that are no `ContrastiveDataModule`, which
            alone knows the splits.
    """

    def __init__(self, option: str, every_n_epochs: int) -> None:
        check(every_n_epochs >= 0, f"{option}.every_n_epochs", every_n_epochs, "0 (off) or more")
        self.every_n_epochs = every_n_epochs

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks the data before training, and frees features of an interrupted validation."""
        _ENCODED.pop(trainer, None)
        data = trainer.datamodule  # type: ignore[attr-defined]
        on = stage == "fit" and self.every_n_epochs
        if on and not isinstance(data, ContrastiveDataModule):
            raise UserError(
                f"{type(self).__name__} encodes the training split's clean images, which a "
                "ContrastiveDataModule gives it, and this training has "
                f"{'loaders alone' if data is None else type(data).__name__}: train with "
                "fit(model, datamodule=ContrastiveDataModule(...)), or leave the callback out"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Frees the features."""
        _ENCODED.pop(trainer, None)


def encode_once(trainer: L.Trainer, module: L.LightningModule, split: Split) -> Features:
    """`encode` of labelled images by all ranks, once a step: monitors share the same features.

    DDP's wrapper has no part in the forward pass: in eval mode it has nothing to synchronise.

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
            data = trainer.datamodule  # type: ignore[attr-defined]
            known[key] = encode(module, data, split, labelled_only=True)
    return known[key]


class FeatureWriter(L.Callback):
    """Writes the features of `predict` to one `.npz` file: `features`, `labels`, `index`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._outputs: list[EvaluationOutput] = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keeps this rank's outputs in the computer's memory."""
        features, labels, index = (outputs[k].cpu() for k in ("features", "labels", "index"))
        self._outputs.append(EvaluationOutput(features=features, labels=labels, index=index))

    # Lightning's own BasePredictionWriter wants to know the loader's sampler, and warns without.
    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers all ranks' outputs; rank 0 writes them."""
        every = collect(self._outputs, trainer.strategy.root_device)
        self._outputs = []
        if trainer.is_global_zero:
            every = every._replace(features=every.features.float())  # NumPy has no bfloat16
            arrays: dict[str, Any] = {name: part.numpy() for name, part in every._asdict().items()}
            make_folder(self.path.parent)
            with whole(self.path) as file:
                np.savez(file, **arrays)
