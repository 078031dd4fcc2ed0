"""How much memory a training step takes, and the largest batch that fits."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.memory import is_oom_error

from simclr_pl.allocator import give_back_memory
from simclr_pl.errors import UserError
from simclr_pl.model.simclr import SimCLR

MARGIN = 0.9
"""Of what was found to fit: views, the loss and the memory's fragments want some too."""


class PeakMemory:
    """A context in which memory is watched: the process's on a CPU (on Linux), else the device's.

    Attributes:
        bytes: the peak above the start; `None` where nobody can say.
        before: bytes in use at the start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self.before = 0

    def __enter__(self) -> "PeakMemory":
        collect(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif _PEAK.exists():
            _PEAK.write_text("5")  # the peak begins anew
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        elif _PEAK.exists():
            self.bytes = _status("VmHWM") - self.before


_PEAK = Path("/proc/self/clear_refs")

_PRIMITIVE = "could not create a primitive"
"""What oneDNN says on a CPU without memory, and seldom of something else."""


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def collect(device: torch.device) -> None:
    """Gives back what nobody refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_back_memory()


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take, where the system says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    system = Path("/proc/meminfo")
    if device.type != "cpu" or not system.exists():
        return None
    lines = system.read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")  # a container's limit
    try:
        limit, used = ((group / f"memory.{n}").read_text().strip() for n in ("max", "current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def ran_out(error: BaseException) -> bool:
    """Whether memory, of whatever device, was what there was too little of."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = "out of memory", "can't allocate memory", "bad_alloc", _PRIMITIVE
    return is_oom_error(error) or any(word in str(error) for word in words)


def try_step(trainer: L.Trainer, model: L.LightningModule, images: int) -> None:
    """Forward and backward of made-up images, in eval mode: ranks don't wait for each other.

    Args:
        trainer: with the data module that knows the images' size, and the precision.
        model: on its device; as it was afterwards.
        images: how many; SimCLR sees two views of each.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    rows = 2 * images if isinstance(model, SimCLR) else images
    training = model.training
    model.eval()
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            with trainer.precision_plugin.forward_context():
                made_up = torch.rand(rows, data.channels, data.image_size, data.image_size)
                numbers = model(made_up.to(model.device))
                if isinstance(model, SimCLR):
                    numbers = model.projector(numbers)
            numbers.float().sum().backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def fits(trainer: L.Trainer, model: L.LightningModule, images: int) -> bool:
    """Whether memory is enough for `try_step`."""
    collect(model.device)
    try:
        try_step(trainer, model, images)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    return True


def largest_batch(fits: Callable[[int], bool], too_many: int) -> int:
    """The most images that fit, to an eighth; 0 where not even one does.

    Args:
        fits: tries a number of images.
        too_many: a number that doesn't fit.
    """
    size = too_many // 2
    while size and not fits(size):
        too_many, size = size, size // 2
    if size:
        for _ in range(2):
            middle = (size + too_many) // 2
            size, too_many = (middle, too_many) if fits(middle) else (size, middle)
    return size


class OutOfMemory(L.Callback):
    """Where memory runs out, finds the largest batch that would have fitted."""

    def __init__(self) -> None:
        self.sentence = ""

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tries smaller batches, on the device as it is."""
        if not ran_out(exception) or not trainer.training:
            return
        # What was on its way is held by the frames in which it was.
        traceback.clear_frames(exception.__traceback__)
        pl_module.zero_grad(set_to_none=True)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        world = trainer.world_size

        each = -(-data.batch_size // world)
        found = largest_batch(lambda images: fits(trainer, pl_module, images), each)
        most = int(MARGIN * found) * world
        if most or _PRIMITIVE not in str(exception):
            self.sentence = _advice(trainer.global_step, data.batch_size, most, pl_module)


def _advice(step: int, batch: int, most: int, model: L.LightningModule) -> str:
    began = f"out of memory at step {step}, with batches of {batch} images"
    if most < 2:
        return f"{began}: not even two of them fit; take a smaller encoder, or smaller images"
    began += f": about {most} fit. Give "
    if not isinstance(model, SimCLR):
        return f"{began}--batch_size {most}"
    if model.micro_batch_size:
        return (
            f"{began}--model.micro_batch_size {min(most, model.micro_batch_size // 2)}, which is "
            f"{model.micro_batch_size} now"
        )
    return (
        f"{began}--model.micro_batch_size {most} to train on batches of {batch} in that memory "
        f"(one more forward pass), or --data.batch_size {most}"
    )


@contextmanager
def explained(trainer: L.Trainer) -> Iterator[None]:
    """Turns an out-of-memory error of training into what `OutOfMemory` has found.

    Raises:
        UserError: with the largest batch that fits, and the option to give.
    """
    try:
        yield
    except Exception as error:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, OutOfMemory) and callback.sentence:
                raise UserError(callback.sentence) from error
        raise
