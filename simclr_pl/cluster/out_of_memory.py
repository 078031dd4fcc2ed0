"""The largest batch that fits into memory, and the sentence where a batch doesn't."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from simclr_pl.cluster.memory import collect, ran_out
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.simclr import SimCLR

MARGIN = 0.9
"""Share of the batch found to fit: views, the loss and fragments of memory need some too."""


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
        for _ in range(3):
            middle = (size + too_many) // 2
            size, too_many = (middle, too_many) if fits(middle) else (size, middle)
    return size


class OutOfMemory(L.Callback):
    """Where an accelerator's memory runs out, finds the largest batch that would have fitted."""

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
        most = None
        # Without memory a CPU's libraries crash, and the system kills: no place for trials.
        if pl_module.device.type != "cpu":
            found = largest_batch(lambda images: fits(trainer, pl_module, images), each)
            most = int(MARGIN * min(found, each - 1)) * world
        self.sentence = advise(trainer.global_step, data.batch_size, most, pl_module)


def advise(step: int, batch: int, most: int | None, model: L.LightningModule) -> str:
    """The sentence about memory that has run out.

    Args:
        step: in which it did.
        batch: images of a step.
        most: of them would have fitted, about; `None` on a CPU, where nobody tries.
        model: whose options are named.
    """
    began = f"out of memory at step {step}, with batches of {batch} images"
    micro: Any = model.micro_batch_size if isinstance(model, SimCLR) else None
    if micro == 1:
        return f"{began}, one at a time; take a smaller encoder, or smaller images"
    if most is not None and most < 2:
        return f"{began}: not even two of them fit; take a smaller encoder, or smaller images"
    if most is None:
        start, size = f"{began}: give", f"{(micro or batch) // 2} or less"
    else:
        start = f"{began}: about {most} fit. Give"
        size = str(min(most, micro // 2) if micro else most)
    if not isinstance(model, SimCLR):
        return f"{start} --batch_size {size}"
    if micro:
        return f"{start} --model.micro_batch_size {size}, which is {micro} now"
    return (
        f"{start} --model.micro_batch_size {size} to train on batches of {batch} in that memory "
        f"(one more forward pass), or --data.batch_size {size}"
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
