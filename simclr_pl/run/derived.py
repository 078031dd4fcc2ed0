"""The table of values that were derived and not typed, printed before step 0."""

import sys
from typing import Any

import lightning as L

from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.lookup import name_of
from simclr_pl.core.model.objective import NTXent
from simclr_pl.core.model.optim import WarmupCosine
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.core.views.own import count_of


class DerivedTable(L.Callback):
    """Prints the table once, on rank 0, when everything is known and nothing has been trained.

    Args:
        where: the run directory's name, or a word on why there is none.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints it."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        if isinstance(pl_module, SimCLR) and isinstance(data, ContrastiveDataModule):
            rows = {"run directory": self.where, **derived(trainer, pl_module, data)}
            width = max(map(len, rows))
            for name, value in rows.items():
                sys.stdout.write(f"  {name:<{width}}  {value}\n")


def derived(
    trainer: L.Trainer, model: SimCLR, data: ContrastiveDataModule, world: int | None = None
) -> dict[str, Any]:
    """Names and values that follow from recipe, data and machine.

    Args:
        trainer: about to train.
        model: set up.
        data: set up.
        world: number of devices (default: the trainer's).
    """
    world = world or trainer.world_size
    batch, train = data.batch_size, data.splits.train
    loader, device = trainer.train_dataloader, trainer.strategy.root_device
    labelled = int((train.labels >= 0).sum())
    where = getattr(getattr(loader, "source", None), "stored", train.stored)
    where += "; views compiled" if data.compiled else ""
    everywhere = model.hparams["global_batch_norm"]
    norm = "global, over all devices" if everywhere else "each device its own"
    parts = len(getattr(loader, "parts", [batch]))
    if parts > 1:
        norm += "; the encoder's sees a micro-batch at a time, the projector's the whole batch"
    per_device = f"{'' if batch % world == 0 else 'about '}{batch / world:.0f}"
    total = int(trainer.estimated_stepping_batches)
    out = len(train) % batch  # (limit_train_batches may leave out more)
    sits_out = f"; {out} images sit out each epoch, others each time" if out else ""
    compares = isinstance(model.objective, NTXent)
    negatives = f", {2 * batch - 2} negatives an anchor" if compares else ""
    parameters = sum(p.numel() for p in model.parameters())
    views = None
    if data.given_views not in (None, "simclr"):
        views = f"{name_of(data.given_views)}, {count_of(data.makes_views)} of each image"
    rows = {
        "device": f"{world} x {device.type}, precision {trainer.precision}",
        "data": f"{data.dataset}: {len(train)} images ({labelled} labelled for the probe), "
        f"{len(data.splits.val)} for validation, {data.num_classes} classes, {where}",
        "images": f"{data.channels} x {data.image_size} x {data.image_size}, "
        f"mean {list(data.mean or ())}, std {list(data.std or ())}{_range(data)}" + _empty(data),
        "views": views,
        "encoder": f"{model.spec.name}, stem {model.stem_built}, {parameters / 1e6:.2f} M "
        "parameters with the projector" + (", compiled" if model.hparams["compiled"] else ""),
        "global batch": f"{batch} images ({per_device} a device){negatives}",
        "micro-batches": f"{parts} of at most {-(-batch // parts)} images" if parts > 1 else None,
        "objective": model.objective_name,
        "batch norm": norm,
        "learning rate": _learning_rate(trainer, model, total),
        "steps": f"{total} ({int(trainer.num_training_batches)} an epoch){sits_out}",
        "seed": model.seed,
    }
    return {name: value for name, value in rows.items() if value is not None}


def _range(data: ContrastiveDataModule) -> str:
    """The words about the numbers that are 0 and 1."""
    return "" if data.range is None else f" of the range {list(data.range)}"


def _empty(data: ContrastiveDataModule) -> str:
    """The words about channels without contrast."""
    which = ", ".join(str(channel + 1) for channel in data.empty_channels)
    return f"; EMPTY (no contrast): channel {which} of {data.channels}" if which else ""


def _learning_rate(trainer: L.Trainer, model: SimCLR, total: int) -> str:
    """The rate of the trainer's optimiser, and how it changes."""
    optimizer, schedules = trainer.optimizers[0], trainer.lr_scheduler_configs
    schedule = schedules[0].scheduler if schedules else None
    if isinstance(schedule, WarmupCosine) and model.optimization.own is None:
        late = "" if model.warmup_steps < total else ": the run ends before the peak is reached"
        return (
            f"{model.peak_learning_rate:.6g} at its peak ({model.optimization.optimizer}, "
            f"{model.optimization.lr_scaling} scaling), {model.warmup_steps} steps of warm-up{late}"
        )
    group = optimizer.param_groups[0]
    rate = group.get("initial_lr", group["lr"])
    ours = type(model).configure_optimizers is SimCLR.configure_optimizers
    scaled = ours and not (model.optimization.own and "lr" in model.optimization.own.args)
    origin = f"{model.optimization.lr_scaling} scaling" if scaled else "as given, not scaled"
    then = "constant"
    if isinstance(schedule, WarmupCosine):
        then = f"{model.warmup_steps} steps of warm-up, then a cosine"
    elif schedule is not None:
        then = f"{type(schedule).__name__}, a step each {schedules[0].interval}"
    return f"{rate:.6g} ({type(optimizer).__name__}, {origin}); {then}"
