"""Limits of a device and a recipe: data, memory, arithmetic."""

import itertools
import statistics
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch.utils.flop_counter import FlopCounterMode

from simclr_pl.cluster.out_of_memory import MARGIN, fits, largest_batch, try_step
from simclr_pl.core.batch import Batch
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.model.simclr import SimCLR

DATA_SECONDS = 2.0
"""Seconds for which data alone is read."""


def data_alone(trainer: L.Trainer, data: ContrastiveDataModule) -> tuple[float, Batch]:
    """Reads batches and moves them to the device, in the order of training, and nothing else.

    Args:
        trainer: on one device.
        data: set up.

    Returns:
        Images a second, and the first batch.
    """
    twin, device = data.apart(), trainer.strategy.root_device
    twin.trainer = trainer
    try:
        loader = twin.train_dataloader()
        # Each pass is the next epoch, as in a training, and expects another one.
        loader.epoch, loader.epochs = itertools.count().__next__, None
        stream = itertools.chain.from_iterable(itertools.repeat(loader))
        first = next(stream)
        for _ in range(2 * data.num_workers):  # what worker processes have ready when first asked
            next(stream)
        synchronise(device)
        images, start = 0, perf_counter()
        while perf_counter() - start < DATA_SECONDS:
            batch = twin.transfer_batch_to_device(next(stream), device, 0)
            images += len(batch.labels)
        synchronise(device)
        return images / (perf_counter() - start), first
    finally:
        twin.teardown()


def synchronise(device: torch.device) -> None:
    """Waits for an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def largest(trainer: L.Trainer, model: SimCLR, data: ContrastiveDataModule) -> int | None:
    """The largest batch that fits into an accelerator's memory, about, without micro-batches.

    Args:
        trainer: whose precision counts.
        model: on its device.
        data: set up.

    Returns:
        Images, at most those of train; `None` on a CPU, where the system would rather kill a
        process than refuse it memory.
    """
    size, most = data.batch_size, len(data.splits.train)
    if model.device.type == "cpu":
        return None
    while size < most and fits(trainer, model, size):
        size *= 2
    if size >= most and fits(trainer, model, most):
        return most
    return int(MARGIN * largest_batch(lambda images: fits(trainer, model, images), size))


def arithmetic(trainer: L.Trainer, model: SimCLR) -> dict[str, Any]:
    """Floating-point operations of an image, and how many a second the device does at its best.

    Args:
        trainer: whose precision counts.
        model: on its device.

    Returns:
        `flops_per_image`: of products and convolutions, both views, forward and backward;
        `matrix_flops_per_s`, measured with large matrices; `matrix_dtype`, their type.
    """
    images, device = 2, model.device
    with FlopCounterMode(display=False) as counter:
        try_step(trainer, model, images)
    with trainer.precision_plugin.forward_context():
        one = next(model.projector.parameters()).new_ones(1, 1)
        dtype = (one @ one).dtype
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    seconds = []
    for _ in range(7):
        synchronise(device)
        start = perf_counter()
        a @ b
        synchronise(device)
        seconds.append(perf_counter() - start)
    return {
        "flops_per_image": counter.get_total_flops() / images,
        "matrix_flops_per_s": 2 * side**3 / statistics.median(seconds[2:]),
        "matrix_dtype": str(dtype).removeprefix("torch."),
    }
