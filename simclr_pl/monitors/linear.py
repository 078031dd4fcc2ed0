"""Linear evaluation while training: the command's protocol, every so many epochs."""

from typing import Any

import lightning as L

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.datamodule import Split
from simclr_pl.core.errors import check
from simclr_pl.images.groups import Groups
from simclr_pl.monitors.moments import due, is_last
from simclr_pl.protocols.features import EncodesSplits, encode_once
from simclr_pl.protocols.linear import Settings, fit_linear
from simclr_pl.protocols.scoring import Rows, choosing_parts, labelled


class LinearEvaluation(EncodesSplits):
    """The `linear` command's protocol on the validation split, while training.

    Every `every_n_epochs` epochs, and after the last, all ranks encode the labelled images of the
    training and the validation split (clean images, encoder in eval mode), train the grid of heads
    and log `linear/val_top1`: the same numbers as `linear --split val` at that epoch. With
    `test_at_end` the head of the run's last step is scored on the test split as well, once:
    `linear/test_top1` is the number of `linear`. An evaluation takes seconds on small data sets,
    and a minute or two for 50,000 images. Works with any module whose `forward`
    gives features; without labels it does nothing. No global random number is drawn.

    Args:
        every_n_epochs: how often, in epochs that are validated, and at the end; 0 turns it off.
        epochs: passes of the heads over the features.
        test_at_end: whether the last step's head is scored on the test split, where it has labels.

    Raises:
        UserError: a value out of its range; at setup, data that are no `ContrastiveDataModule`;
            before the first step, a test split that is too small for so many devices, and labelled
            images of too few groups to choose on.
    """

    def __init__(
        self, every_n_epochs: int = 0, epochs: int = Settings().epochs, test_at_end: bool = False
    ) -> None:
        super().__init__("linear", every_n_epochs)
        check(epochs >= 1, "linear.epochs", epochs, "at least 1")
        self.epochs, self.test_at_end = epochs, test_at_end

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses what has no number now, not after the last step: test, or groups of images."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.every_n_epochs and self._tests(data):
            data.evaluation_loader("test", "clean", labelled_only=True)
        if self.every_n_epochs and (groups := Groups.of(data.splits.train)) is not None:
            labels = data.splits.train.labels
            (known,) = (labels != UNLABELLED).nonzero(as_tuple=True)
            if len(known):
                choosing_parts(labels[known], data.seed, groups.at(known))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Trains the heads and logs the chosen one's accuracy."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not due(trainer, self.every_n_epochs) or not data.num_classes:
            return
        train = _rows(trainer, pl_module, "train")
        # Every rank does the same work: nobody waits for long, and none hangs where one fails.
        fitted = fit_linear(
            lambda _: train.features,
            train.labels,
            data.num_classes,
            Settings(epochs=self.epochs, seed=data.seed),
            groups=train.groups,
        )
        splits: list[Split] = ["val"]
        # An epoch may have several validations: the test split is for the very last.
        if is_last(trainer) and self._tests(data):
            splits.append("test")
        for split in splits:
            top1 = fitted.score(_rows(trainer, pl_module, split)).top1
            pl_module.log(f"linear/{split}_top1", top1, sync_dist=trainer.world_size > 1)

    def _tests(self, data: Any) -> bool:
        test = data.splits.test
        return self.test_at_end and test is not None and bool((test.labels != UNLABELLED).any())


def _rows(trainer: L.Trainer, module: L.LightningModule, split: Split) -> Rows:
    """Labelled features, on this rank's device."""
    groups = Groups.of(getattr(trainer.datamodule.splits, split))  # type: ignore[attr-defined]
    rows = labelled(encode_once(trainer, module, split), split, groups)
    return rows.to(trainer.strategy.root_device)
