"""The private names of Lightning and torch that the core uses: see `simclr_pl.lightning_internals`.

Imports of Lightning are late: the loss needs none of it.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import lightning as L

AnyConv = nn.modules.conv._ConvNd
"""The class of all convolutions: torch exports its subclasses alone, six of them."""

AnyBatchNorm = nn.modules.batchnorm._BatchNorm
"""The class of all batch norms, with their parameters and buffers, and no check of dimensions."""


if TYPE_CHECKING:
    restricted_classmethod = classmethod
else:

    def restricted_classmethod(method: Any) -> Any:
        """A classmethod that an instance refuses, as Lightning's own `load_from_checkpoint`.

        A plain `classmethod` that overrides it would drop the refusal.
        """
        from lightning.pytorch.utilities.model_helpers import _restricted_classmethod

        return _restricted_classmethod(method)


def synchronises_batch_norm(trainer: "L.Trainer") -> bool:
    """Whether `sync_batchnorm` was asked for: the Trainer has no attribute of that name."""
    return trainer._accelerator_connector._layer_sync is not None


def start_method(trainer: "L.Trainer") -> str | None:
    """How processes are started that functions run in (spawn, fork), or `None` without any.

    The base class of Lightning's public launchers, and the method, are private.
    """
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        return None
    method: str = launcher._start_method
    return method


def find_training_batches(trainer: "L.Trainer") -> None:
    """Has Lightning count an epoch's batches now: with `max_steps` alone it does so too late."""
    trainer.fit_loop.setup_data()


def batches_done(trainer: "L.Trainer", *, in_all: bool) -> int:
    """Places of the batch that is trained on: in its epoch, or in all epochs together.

    `Trainer` has the number of optimiser steps alone.
    """
    loop = trainer.fit_loop
    return loop.total_batch_idx if in_all else loop.batch_idx
