"""Linear evaluation while training: the command's protocol, every so many epochs."""

import lightning as L

from simclr_pl.errors import UserError
from simclr_pl.evaluate.features import encode_once, forget
from simclr_pl.evaluate.knn import due
from simclr_pl.evaluate.linear import Recipe, evaluate_linear
from simclr_pl.evaluate.scoring import labelled


class LinearEvaluation(L.Callback):
    """The `linear` command's protocol on the validation split, while training.

    Every so many epochs, and after the last, all ranks encode the training and the validation split
    (clean images, encoder in eval mode), train the grid of heads and log `linear/val_top1`: the
    same numbers as `linear --split val` at that epoch. It takes seconds on small data sets, and a
    minute or two for 50,000 images, so that it is off unless asked for. Works with any module whose
    `forward` gives features; without labels it does nothing. No global random number is drawn.

    Args:
        every_n_epochs: how often, in epochs that are validated; 0 turns it off.
        epochs: passes of the heads over the features.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(self, every_n_epochs: int = 0, epochs: int = Recipe().epochs) -> None:
        if every_n_epochs < 0:
            raise UserError(
                f"linear.every_n_epochs is {every_n_epochs}, but must be 0 (off) or more"
            )
        if epochs < 1:
            raise UserError(f"linear.epochs is {epochs}, but must be at least 1")
        self.every_n_epochs, self.epochs = every_n_epochs, epochs

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Trains the heads and logs the chosen one's accuracy."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not due(trainer, self.every_n_epochs) or not data.num_classes:
            return
        device = trainer.strategy.root_device
        val = labelled(encode_once(trainer, pl_module, "val"), "val").to(device)
        train = labelled(encode_once(trainer, pl_module, "train"), "train").to(device)
        # Every rank does the same work: nobody waits for long, and none hangs where one fails.
        score = evaluate_linear(
            lambda _: train.features,
            train.labels,
            val,
            data.num_classes,
            Recipe(epochs=self.epochs, seed=data.seed),
        )
        pl_module.log("linear/val_top1", score.top1, sync_dist=trainer.world_size > 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets go of the features."""
        forget(trainer)
