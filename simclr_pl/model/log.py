"""What every training logs of a step, and on which steps."""

from typing import Any

import lightning as L
import torch
from torch import nn


def is_logged(trainer: L.Trainer) -> bool:
    """Whether Lightning hands this step's numbers to its loggers, or it is the first or the last.

    (Those two are for the lines that a person sees.) On other steps nobody would see them: they
    aren't worked out, nor summed over ranks.
    """
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]
    step = trainer.global_step
    shown = step == 0 or step + 1 == trainer.estimated_stepping_batches
    return bool(shown or dry_run or (every and (step + 1) % every == 0))


def log_learning_rate(module: L.LightningModule) -> None:
    """Logs `train/lr`. As a tensor: Lightning would copy a number to the device, and wait."""
    optimizer: Any = module.optimizers()
    module.log("train/lr", torch.tensor(optimizer.param_groups[0]["lr"], device="cpu"))


def log_gradient_norm(module: L.LightningModule) -> None:
    """Logs `train/grad_norm`, of all gradients together."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    module.log("train/grad_norm", nn.utils.get_total_norm(grads))
