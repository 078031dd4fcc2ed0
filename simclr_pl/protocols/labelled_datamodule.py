"""The data of supervised training: few labelled images, one crop of each an epoch."""

from typing import Any, NamedTuple

from torch import Tensor

from simclr_pl.core.batch import UNLABELLED, Batch
from simclr_pl.core.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.core.data.loaders import EvaluationLoader, TrainLoader
from simclr_pl.core.errors import UserError
from simclr_pl.images.groups import Groups
from simclr_pl.images.readers.reader import say_once
from simclr_pl.images.splits import draw_fraction, drawn_groups, no_labels


class LabelledImages(NamedTuple):
    """Images for supervised training, normalised, on the device.

    Attributes:
        images: `float [B, C, S, S]`, cropped and flipped in training, else clean.
        labels: `int64 [B]`, `UNLABELLED` where unknown.
    """

    images: Tensor
    labels: Tensor


class LabelledDataModule(ContrastiveDataModule):
    """A share of train's labels, the same images for everybody with the same seed.

    Training images are cropped and flipped, as the first of two views is; colours stay as they are,
    and evaluation sees clean images (Chen et al. 2020, appendix B.5). Order and crops are a pure
    function of seed, epoch and image, as in pretraining.

    Args:
        label_fraction: of each class's labelled images in train, above 0 and at most 1; of images
            in groups whole groups are drawn.
        data: arguments of `ContrastiveDataModule`, less those that change colours. `batch_size` is
            the most that a batch holds: each epoch is cut into equal batches, so that at most a few
            images wait for the next one.

    Raises:
        UserError: as `ContrastiveDataModule`; from `setup`, a fraction that leaves a class empty.
    """

    def __init__(self, label_fraction: float, **data: Any) -> None:
        super().__init__(
            jitter=0.0, grayscale=0.0, blur=0.0, views=None, compiled=False, predict_split="val",
            **data,
        )  # fmt: skip
        self.label_fraction = label_fraction

    def setup(self, stage: str | None = None) -> None:
        """Reads the data, and keeps of train what is labelled and drawn."""
        if self.channels is not None:
            return
        super().setup(stage)
        train = self.splits.train
        groups = Groups.of(train)
        chosen = draw_fraction(train.labels, self.label_fraction, self.seed, groups)
        if groups is not None and self.label_fraction < 1:
            say_once(drawn_groups(self.label_fraction, train.labels, chosen, groups))
        how = self.views, self.views, self.num_workers
        self.splits = self.splits._replace(train=train.select(chosen).prepared(*how))
        # One image alone has no statistics that batch norm could use.
        self.batch_size = max(2, len(chosen) // -(-len(chosen) // self.batch_size))

    @property
    def labels(self) -> int:
        """How many images are trained on."""
        return len(self.splits.train)

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return self.labels // self.batch_size

    def check_scored(self, split: Split) -> None:
        """Whether a split can be scored, before anything is trained.

        Raises:
            UserError: there is no such split, or it has no labels.
        """
        self.evaluation_loader(split, "clean")  # says so where there is none
        if bool((getattr(self.splits, split).labels == UNLABELLED).all()):
            raise no_labels(split)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> LabelledImages:  # type: ignore[override]
        """Crops and flips in training, the clean image otherwise, on the batch's device."""
        trainer = self.trainer
        assert trainer is not None
        if trainer.training:
            images = self.views.one(batch.images, batch.index, batch.epoch, batch.sizes)
        else:
            images = self.make_clean(batch, views=False).clean
        return LabelledImages(images, batch.labels)

    def train_dataloader(self) -> TrainLoader:
        """Batches of the drawn images, in each epoch's order."""
        _, world = self._ranks()
        if self.batch_size < 2 * world:
            raise UserError(
                f"a batch has {self.batch_size} of {self.labels} labelled images, too few for "
                f"{world} devices, which need 2 each: use fewer devices, or give a larger "
                "batch_size or label_fraction"
            )
        return super().train_dataloader()

    def val_dataloader(self) -> EvaluationLoader:
        """Clean images of the validation split."""
        return self.evaluation_loader("val", "clean")

    def test_dataloader(self) -> EvaluationLoader:
        """Clean images of the test split."""
        return self.evaluation_loader("test", "clean")
