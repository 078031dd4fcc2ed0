"""What every training logs of a step, and on which steps."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from simclr_pl.core.batch import StepOutput
from simclr_pl.core.distributed import sum_over_ranks
from simclr_pl.core.lightning_internals import batches_done


def is_logged(trainer: L.Trainer) -> bool:
    """Whether somebody looks at this step's numbers: loggers, callbacks, or a person.

    Loggers do every `log_every_n_steps`; callbacks such as EarlyStopping where an epoch ends or a
    validation begins; a person at the first step and the last. On other steps nobody would see
    them: they aren't worked out, nor summed over ranks, and `callback_metrics` keeps the last ones.
    """
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]
    step = trainer.global_step
    shown = step == 0 or step + 1 == trainer.estimated_stepping_batches or trainer.is_last_batch
    to_loggers = every and (step + 1) % every == 0
    return bool(shown or dry_run or to_loggers or _is_validated(trainer))


def _is_validated(trainer: L.Trainer) -> bool:
    """Whether a validation in mid-epoch follows this step."""
    every = trainer.val_check_batch
    # (In batches over all epochs where `check_val_every_n_epoch` is None.)
    done = batches_done(trainer, in_all=trainer.check_val_every_n_epoch is None)
    return every not in (None, 0) and (done + 1) % every == 0


def log_step(module: L.LightningModule, output: StepOutput, metrics: Mapping[str, Tensor]) -> None:
    """Logs the numbers of a training step.

    Args:
        module: whose step it is.
        output: of the step.
        metrics: further numbers of the objective, by name.
    """
    many = module.trainer.world_size > 1
    module.log("train/loss", output["loss"].detach(), prog_bar=True, sync_dist=many)
    for name, value in metrics.items():
        module.log(f"train/{name}", value.detach(), sync_dist=many)
    if output["positive_rank"] is not None:
        hits = (output["positive_rank"] == 0).float()
        # Of ranks with different numbers of rows: weighted, so that each anchor counts once.
        values = torch.stack([hits.sum(), hits.new_full((), hits.numel())])
        values = sum_over_ranks(values) if many else values
        module.log("train/contrastive_top1", values[0] / values[1], prog_bar=True)
    log_learning_rate(module)


def log_learning_rate(module: L.LightningModule) -> None:
    """Logs `train/lr`. As a tensor: Lightning would copy a number to the device, and wait."""
    optimizer: Any = module.optimizers()
    module.log("train/lr", torch.tensor(optimizer.param_groups[0]["lr"], device="cpu"))


def log_gradient_norm(module: L.LightningModule) -> None:
    """Logs `train/grad_norm`, of all gradients together."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    module.log("train/grad_norm", nn.utils.get_total_norm(grads))
