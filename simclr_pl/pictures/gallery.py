"""Pictures of the representation while it is trained, in every logger that takes images."""

import io
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.monitors.moments import due, log_now
from simclr_pl.pictures.encoded_sample import moment, snap
from simclr_pl.run.unfinished import UnfinishedError

MOST = (2_000, 500)
"""Images of train and of val that are encoded at most: fewer than `report` has time for."""


class Gallery(L.Callback):
    """`report`'s pictures while training, logged as images named `pictures/<name>`.

    Every so many epochs, and after the last, rank 0 encodes at most 2,000 images of the training
    and 500 of the validation split, and draws nearest neighbours, kNN confusions, a map of the
    features, and similarities of positives and negatives; the first time also what the
    augmentation does. Drawing takes a few seconds, in which the other ranks wait. Unlabelled
    images, and modules without a `projector`, get the pictures that need neither. Without a logger
    that takes images (W&B's and TensorBoard's do), under a strategy that shards the module, and
    where features are no longer finite, nothing is done. An error in a picture or in a logger that
    takes it is said once, and training goes on. No global random number is drawn.

    Args:
        every_n_epochs: how often, in epochs that are validated; 0 turns it off.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(self, every_n_epochs: int = 50) -> None:
        if every_n_epochs < 0:
            raise UserError(
                f"pictures.every_n_epochs is {every_n_epochs}, but must be 0 (off) or more"
            )
        self.every_n_epochs = every_n_epochs
        self._views_are_shown = self._complained = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Another fit shows and says all anew."""
        if stage == "fit":
            self._views_are_shown = self._complained = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws, on rank 0 alone: in eval mode a forward pass needs no other rank."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        loggers = _that_take_images(trainer)
        if not loggers or not due(trainer, self.every_n_epochs):
            return
        if not isinstance(data, ContrastiveDataModule) or not _is_whole(trainer):
            return
        try:
            pictures = self._draw(trainer, pl_module, data.apart())
            for logger in loggers if pictures else []:
                _log(trainer, logger, pictures)
        except UnfinishedError:
            raise
        except Exception as error:  # whatever it is: no picture is worth a training
            if not self._complained:
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                what = f"{kind}{' '.join(str(error).split())}"[:300]
                trainer.print(f"warning: no pictures ({what}); training goes on")
            self._complained = True

    def _draw(
        self, trainer: L.Trainer, module: L.LightningModule, data: ContrastiveDataModule
    ) -> dict[str, Any]:
        """Pictures (PIL's) by name, as in `pictures/map`."""
        # Late: matplotlib would cost every command's start half a second.
        from PIL import Image

        from simclr_pl.pictures.features import draw_all
        from simclr_pl.pictures.page import png
        from simclr_pl.pictures.views import draw_views

        seed = getattr(module, "seed", data.seed)
        when = moment(trainer.current_epoch, trainer.global_step, seed)
        context = trainer.precision_plugin.forward_context
        snapshot = snap(module, data, when, MOST, context, quiet=True)
        if snapshot is None:
            return {}
        figures = draw_all(snapshot)
        if not self._views_are_shown:  # they are the same from first to last
            figures["views"] = draw_views(data, images=8, epochs=3)
            self._views_are_shown = True
        # Not the figures themselves: W&B would import pyplot, whose state is everybody's.
        files = {f"pictures/{name}": io.BytesIO(png(figure)) for name, figure in figures.items()}
        return {name: Image.open(file) for name, file in files.items()}


def _that_take_images(trainer: L.Trainer) -> list[Any]:
    """Rank 0's loggers: TensorBoard's, and those with Lightning's `log_image`."""
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []  # the logger of a fast_dev_run says yes to every name
    return [
        logger
        for logger in trainer.loggers
        if isinstance(logger, TensorBoardLogger) or hasattr(logger, "log_image")
    ]


def _log(trainer: L.Trainer, logger: Any, pictures: dict[str, Any]) -> None:
    """Hands pictures (PIL's) by name to a logger, in its own way."""
    if isinstance(logger, WandbLogger):  # in one row, which its own log_image gives no epoch
        import wandb

        row: dict[str, Any] = {name: [wandb.Image(image)] for name, image in pictures.items()}
        log_now(trainer, row, [logger])
        return
    step = trainer.global_step - 1  # as Lightning counts the step that has just been taken
    for name, picture in pictures.items():
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        else:
            logger.log_image(name, [picture], step=step)


def _is_whole(trainer: L.Trainer) -> bool:
    """Whether rank 0 has all of the module: elsewhere its forward pass waits for other ranks."""
    return type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
