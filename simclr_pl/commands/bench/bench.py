"""`bench`: how fast a recipe trains on this machine, what it waits for, and what to change."""

import json
import os
import statistics
import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.profilers import SimpleProfiler

from simclr_pl.cluster.memory import PeakMemory
from simclr_pl.cluster.out_of_memory import explained
from simclr_pl.commands.bench import ceilings as limits
from simclr_pl.commands.bench.step_timing import Seconds, Turns
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.images.workers.images import WorkerImages
from simclr_pl.pictures.gallery import Gallery
from simclr_pl.run.directory import file_to_write
from simclr_pl.run.results import versions
from simclr_pl.writing import write_text

ENOUGH = 0.95
"""Share of the bare step's speed from which on nothing outside the model is worth a change."""


PACKABLE = ("folder", "manifest")
"""Data sets that `pack` takes."""

PACK = "Write the folder once as pixels (python -m simclr_pl pack), and measure again"


def on_one_device(config: Any) -> None:
    """Makes a configuration of `fit` one that `bench` measures: one device, its share, no end.

    Args:
        config: as the command line has parsed it; changed in place.
    """
    trainer = config.trainer
    world = _devices(trainer) * trainer.num_nodes
    if world > 1:
        config.data.batch_size = max(2, config.data.batch_size // world)
        if config.model.micro_batch_size:
            config.model.micro_batch_size = -(-config.model.micro_batch_size // world)
    trainer.devices, trainer.num_nodes, trainer.strategy = 1, 1, "auto"
    trainer.max_epochs, trainer.max_steps, trainer.min_epochs, trainer.min_steps = 10**6, -1, 0, 0
    trainer.max_time, trainer.fast_dev_run, trainer.limit_val_batches = None, False, 0
    trainer.enable_progress_bar, trainer.profiler = False, None


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_out_idle(trainer: L.Trainer) -> Any:
    """Takes callbacks from a trainer that validates nothing, and has nothing to stop early for.

    Returns:
        The trainer, whose callbacks may be set.
    """
    watching: Any = trainer
    idle = (Checkpoint, Gallery, EarlyStopping)
    watching.callbacks = [each for each in watching.callbacks if not isinstance(each, idle)]
    return watching


def _devices(trainer: Any) -> int:
    """Devices of a machine; Lightning takes a number, a list, or either of them as a string."""
    given = trainer.devices
    if isinstance(given, str) and "," in given:
        given = [name for name in given.split(",") if name.strip()]
    if isinstance(given, list):
        return len(given)
    if given in ("auto", -1, "-1"):
        on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.cuda.device_count() if on_gpu else 1
    return int(given)


def bench(
    trainer: L.Trainer,
    model: SimCLR,
    data: ContrastiveDataModule,
    *,
    out: str | None,
    seconds: float,
) -> dict[str, Any]:
    """Measures, prints, and writes JSON.

    Args:
        trainer: of `fit`, on one device, with a loader that counts `waited`.
        model: new.
        data: new.
        out: a JSON file, or `None`.
        seconds: how long steps are measured, about.

    Returns:
        What is written.

    Raises:
        UserError: numbers out of range; memory that is too little; whatever is wrong with the
            recipe or the data.
    """
    if seconds <= 0:
        raise UserError(f"seconds is {seconds}, but must be above 0")
    target = file_to_write(out) if out else None
    watching = leave_out_idle(trainer)
    data.prepare_data()
    data.setup("fit")
    device = trainer.strategy.root_device
    sys.stdout.write(
        f"measuring data, then steps for {seconds:g} s (more where they are slow), then limits\n"
    )
    sys.stdout.flush()
    rate, first = limits.data_alone(trainer, data)
    turns = Turns(first, seconds)
    if device.type == "cpu":  # an accelerator goes on behind the host's back
        watching.profiler = SimpleProfiler()
    watching.callbacks.append(turns)
    with PeakMemory(device) as peak, explained(trainer):
        trainer.fit(model, data)
    model.to(device)  # Lightning has put it away
    found = _summary(turns.measured, data.batch_size, rate)
    found |= {
        "peak_memory_bytes": None if peak.bytes is None else peak.before + peak.bytes,
        "largest_batch": limits.largest(trainer, model, data),
        **limits.arithmetic(trainer, model),
    }
    end_to_end = found["images_per_s"]["end_to_end"]
    done = found["flops_per_image"] * end_to_end
    found["share_of_matrix_rate"] = done / found["matrix_flops_per_s"]
    found["bottleneck"] = bottleneck(found, data, model)
    found |= {
        "device": limits.device_name(device), "precision": str(trainer.precision),
        "encoder": model.hparams["encoder"], "dataset": data.dataset,
        "image_size": data.image_size, "batch_size": data.batch_size, "versions": versions(),
    }  # fmt: skip
    sys.stdout.write("\n".join(_lines(found, len(data.splits.train))) + "\n")
    if target is not None:
        write_text(target, json.dumps(found, indent=2) + "\n", "--out")
        sys.stdout.write(f"written to {target}\n")
    return found


def _summary(turns: list[Seconds], batch: int, data_rate: float) -> dict[str, Any]:
    step = Seconds(*map(statistics.median, zip(*turns, strict=True)))
    low, _, high = statistics.quantiles([t.bare / t.real for t in turns], n=4, method="inclusive")
    seconds = {
        "network": step.bare - step.loss - step.optimizer,
        "loss": step.loss,
        "optimizer": step.optimizer,
        "views": step.views,
        "waiting_for_data": step.waited,
    }
    if step.callbacks:
        seconds["callbacks"] = step.callbacks
    share = {name: part / step.real for name, part in seconds.items()}
    share["rest"] = 1 - sum(share.values())
    return {
        "images_per_s": {
            "data": data_rate,
            "views": batch / step.views,
            "bare_step": batch / step.bare,
            "end_to_end": batch / step.real,
        },
        "end_to_end_over_bare": step.bare / step.real,
        "end_to_end_over_bare_quartiles": [low, high],
        "turns": len(turns),
        "step_seconds": step.real,
        "share": share,
    }


def bottleneck(found: dict[str, Any], data: ContrastiveDataModule, model: SimCLR) -> str:
    """The part of a step that takes most time around the model, and what to change, in a sentence.

    Args:
        found: `share` and `end_to_end_over_bare`.
        data: of the run.
        model: of the run.
    """
    share, ratio = found["share"], found["end_to_end_over_bare"]
    if ratio >= ENOUGH:
        return (
            f"The bottleneck is the model, as it should be: end to end is {ratio:.2f} of its own "
            f"speed. Faster is {_faster_model(found, model)}"
        )
    around = {name: share[name] for name in share.keys() - {"network", "loss", "optimizer"}}
    most = max(around, key=around.__getitem__)
    part = f"{share[most]:.0%} of a step"
    larger = "Larger batches (--data.batch_size) have fewer steps"
    rarer = f"{larger}; --trainer.log_every_n_steps and --health.every_n_steps may be larger"
    if most == "waiting_for_data":
        what = f"the data: {part} is waiting for it. {_faster_data(data)}"
    elif most == "views":
        smaller = "Smaller views (--data.image_size), or more work for the model on each"
        what = f"the augmentation: {part}. "
        what += smaller if data.compiled else "Give --data.compiled true"
    elif most == "callbacks":
        what = f"the probe and the monitors: {part}. {rarer}"
    elif "callbacks" not in share:  # the rest holds them too
        what = f"what is around the step (probe, monitors, logging): {part}. {rarer}"
    elif data.dataset in PACKABLE and data.num_workers:
        what = (
            f"the cores: {part} goes to what shares them, the {data.num_workers} worker processes "
            f"that decode. {PACK}, or more cores"
        )
    else:
        what = f"the loop around the step: {part}. {larger}"
    return f"End to end is {ratio:.2f} of the model's own speed, and the bottleneck is {what}"


def _faster_model(found: dict[str, Any], model: SimCLR) -> str:
    ways = ["a smaller encoder", "more devices"]
    if not model.hparams["compiled"]:
        ways.insert(0, "--model.compiled true")
    if found["matrix_dtype"] == "float32" and model.device.type == "cuda":
        ways.insert(0, "--trainer.precision bf16-mixed")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}"


def _faster_data(data: ContrastiveDataModule) -> str:
    if data.dataset == "packed":
        return (
            "It is read from the disk: a faster one, or memory that holds the file, or pack again "
            "with a smaller --short_side"
        )
    if not isinstance(data.whole.train, WorkerImages):
        return "Data that fits in memory shouldn't wait: look what else this machine does"
    cores = available_cores()
    if data.num_workers < cores:
        return f"Give more --data.num_workers (now {data.num_workers}, of {cores} cores)"
    pack = f" {PACK}" if data.dataset in PACKABLE else ""
    return f"There are no more cores than worker processes ({cores}).{pack}"


def _lines(found: dict[str, Any], train: int) -> list[str]:
    speed, share = found["images_per_s"], found["share"]
    low, high = found["end_to_end_over_bare_quartiles"]
    rates = {name: f"{rate:,.0f} images/s" for name, rate in speed.items()}
    parts = ", ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in share.items())
    peak, largest = found["peak_memory_bytes"], found["largest_batch"]
    fit = f"all {train:,} images fit" if largest == train else f"about {largest or 0:,} images"
    most = f"{found['matrix_flops_per_s'] / 1e9:,.0f} GFLOP/s"
    rows = {
        "machine": f"{found['device']}, precision {found['precision']}",
        "recipe": f"{found['encoder']}, {found['dataset']} at {found['image_size']} px, batches of "
        f"{found['batch_size']} images on this device",
        "data alone": rates["data"],
        "views alone": rates["views"],
        "bare step": f"{rates['bare_step']} (network, loss, gradients, optimiser, on views in "
        "memory: the limit)",
        "end to end": f"{rates['end_to_end']}, {found['end_to_end_over_bare']:.3f} of the bare "
        f"step (quartiles of {found['turns']} turns {low:.3f} to {high:.3f})",
        "a step": f"{1e3 * found['step_seconds']:.4g} ms: {parts}",
        "peak memory": "not known here" if peak is None else f"{peak / 1e9:.2f} GB",
        "largest batch": "not tried on a CPU" if largest is None else fit,
        "arithmetic": f"{found['flops_per_image'] / 1e9:.3g} GFLOP an image (two views, forward "
        f"and backward): {found['share_of_matrix_rate']:.0%} of what matrix products in "
        f"{found['matrix_dtype']} reach here, {most}",
    }
    width = max(map(len, rows))
    return [f"  {name:<{width}}  {value}" for name, value in rows.items()] + [found["bottleneck"]]
