"""The LightningDataModule: a data set, its loaders, and views made on the device."""

import copy
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from simclr_pl.core.batch import Batch, Cut, EvaluationBatch, MicroBatches, Views
from simclr_pl.core.data import loaders, sources
from simclr_pl.core.data.dataset import prepare_dataset, read_dataset
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.lookup import Door, name_of
from simclr_pl.core.paths import expanded
from simclr_pl.core.randomness import run_seed
from simclr_pl.core.speed.compiler import has_compiler
from simclr_pl.core.views.own import build_views, clean_of, count_of, views_of
from simclr_pl.core.views.simclr import SCALE, SimCLRViews

Split = Literal["train", "val", "test"]

RESIDENT_SHARE = 0.25
"""Sets up to this share of a GPU's free memory are kept on it, those of image files aside."""


class ContrastiveDataModule(L.LightningDataModule):
    """Pairs of augmented views for pretraining, clean images (and pairs) for evaluation.

    Args:
        dataset: digits, fashion_mnist, cifar10, cifar100, stl10, folder, manifest, packed, npz,
            npy, hdf5, zarr, shards, hub:NAME, hub:PATH, torchvision:NAME; or the path of a Dataset
            or of a function of splits (docs/data.md); in Python an object, as `Splits`.
        root: folder of the data: the images', the packed set's; or the file of npz, manifest, ...
        batch_size: images a step, global: over all devices together.
        image_size: side of a view in pixels (default: the data's own; 224 for photographs).
        scale: bounds of a crop's area, as a share of the image's.
        flip: probability of mirroring left and right.
        jitter: colour jitter, the paper's strength s (CIFAR-10: 0.5).
        grayscale: probability of dropping colour (default: 0.2 of RGB, 0 of other bands).
        blur: probability of Gaussian blur (the paper's CIFAR-10: 0).
        mean: of each channel, from 0 to 1 (default: counted; ImageNet's for photographs).
        std: of each channel, likewise.
        views: simclr, extended (turned, padded, solarised too), or the class path of your own: of
            (images, index, epoch) it makes two or more float tensors [B, C, S, S].
        num_workers: processes that decode image files, a device; other sets need none.
        split_seed: of the validation holdout; keep it, so that runs are comparable.
        labels: given, or none (where folders are cameras, no classes).
        on_bad_image: error, or skip: a bad image file ends the run, or is named in
            RUN/left_out.csv and left out (more than 1 % end the run all the same).
        max_pixels: of an image file; larger ones are bad.
        range: numbers that are black and white, as [0,4095], or auto (not 8-bit RGB).
        pages: of a TIFF or DICOM file with several: channels of one image, or images.
        predict_split: what `predict` encodes: train, val or test.
        compiled: compile what makes the views: the same to rounding, and faster; `fit` needs a C++
            compiler, which the first steps wait for.
        seed: of order and views (default: what `seed_everything` was given, or 0).

    Raises:
        UserError: a value out of its range; from `prepare_data` and `setup`, data that are unfit.
    """

    def __init__(
        self,
        dataset: Door = "digits",
        root: str = "data",
        batch_size: int = 256,
        image_size: int | None = None,
        scale: tuple[float, float] = SCALE,
        flip: float = 0.5,
        jitter: float = 1.0,
        grayscale: float | None = None,
        blur: float = 0.5,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        num_workers: int = 2,
        split_seed: int = 0,
        labels: sources.Labels = "given",
        on_bad_image: sources.OnBadImage = "error",
        max_pixels: int = sources.MAX_PIXELS,
        range: sources.Range | Literal["auto"] | None = None,  # noqa: A002
        pages: sources.Pages | None = None,
        predict_split: Split = "val",
        compiled: bool = False,
        seed: int | None = None,
        views: Door | None = None,
    ) -> None:
        super().__init__()
        check(batch_size >= 2, "data.batch_size", batch_size, "at least 2: images are compared")
        check(max_pixels >= 1, "data.max_pixels", max_pixels, "at least 1")
        check(num_workers >= 0, "data.num_workers", num_workers, "0 or more")
        self.given_dataset, self.dataset = dataset, name_of(dataset)
        # (Shards may lie at an address.)
        self.root = root if self.dataset == "shards" else str(expanded(root))
        self.batch_size = batch_size
        self.num_workers, self.split_seed, self.seed = num_workers, split_seed, run_seed(seed)
        self.predict_split: Split = predict_split
        self.reading: dict[str, Any] = {
            "labels": labels, "on_bad_image": on_bad_image, "max_pixels": max_pixels,
            "range": range, "pages": pages,
        }  # fmt: skip
        self.left_out: Path | None = None
        """The file that names the images that cannot be read, if a run has a place for it."""
        self._image_size, self._mean, self._std = image_size, mean, std
        self._augmentation: dict[str, Any] = {
            "scale": scale, "flip": flip, "jitter": jitter, "grayscale": grayscale, "blur": blur,
        }  # fmt: skip
        self.compiled, self.given_views = compiled, views
        # Values out of range are said now, not after a download.
        SimCLRViews(32 if image_size is None else image_size, **self._augmentation)
        self._loader: loaders.TrainLoader | None = None
        self._loaded: dict[str, Any] | None = None
        self.kept: Any = None
        """The validation images of the run that these data are for (`HeldOut`), if it has begun."""
        self.counted: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        """Mean and standard deviation that this run has counted, if it has begun."""
        self.whole: sources.Splits
        """As they were read; of `splits` some images may have been left out."""
        self.splits: sources.Splits
        self.views: SimCLRViews
        """The paper's: of crops for evaluation, and of clean images."""
        self.makes_views: Any
        """What makes views for training: `views`, or the user's own."""
        self.image_size: int | None = None
        self.channels: int | None = None
        self.mean: tuple[float, ...] | None = None
        self.std: tuple[float, ...] | None = None
        self.range: sources.Range | None = None
        self.empty_channels: tuple[int, ...] = ()

    def prepare_data(self) -> None:
        """Downloads what is missing: Lightning calls this once a machine."""
        prepare_dataset(self.given_dataset, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Reads the data and derives channels, image size, classes and statistics."""
        if self.channels is not None:
            return
        where = self.root, self.split_seed, self.kept, self.reading, self.left_out
        splits = read_dataset(self.given_dataset, *where)
        channels = splits.train.channels
        mean, std, self.empty_channels = splits.train.statistics()
        if self.counted and len(self.counted[0]) == channels:
            mean, std = self.counted
        self.range = getattr(splits.train, "range", None)
        self.mean = sources.per_channel("mean", self._mean or mean, channels)
        self.std = sources.per_channel("std", self._std or std, channels)
        self.image_size = self._image_size or splits.train.side or 224
        self.views = SimCLRViews(
            self.image_size, **self._augmentation, mean=self.mean, std=self.std, seed=self.seed,
            # What was trained with a compiler is evaluated without one, too.
            compiled=self.compiled and (stage == "fit" or has_compiler()),
        )  # fmt: skip
        self.makes_views = build_views(self.given_views, self.views)
        if isinstance(self.makes_views, SimCLRViews):
            self.views = self.makes_views
        how = self.views, self.makes_views, self.num_workers
        test = None if splits.test is None else splits.test.prepared(*how)
        train, val = splits.train.prepared(*how), splits.val.prepared(*how)
        self.whole, self.splits = splits, splits._replace(train=train, val=val, test=test)
        self.channels = channels

    def train_dataloader(self) -> loaders.TrainLoader:
        """Batches for pretraining, in each epoch's order."""
        train = self.splits.train
        (rank, world), trainer, most = self._ranks(), self.trainer, len(train)
        assert trainer is not None
        wanted = f"at most {most}, the images that {self.dataset} has to train on"
        check(self.batch_size <= most, "data.batch_size", self.batch_size, wanted)
        loaders.check_batch(self.batch_size, world)
        model = getattr(trainer, "lightning_module", None)
        micro = getattr(model, "micro_batch_size", None)
        parts = loaders.count_micro_batches(self.batch_size, micro, world)
        place = self._place(train), self.batch_size, rank, world, self.seed
        self._loader = loaders.TrainLoader(
            *place,
            lambda: trainer.current_epoch,
            epochs=trainer.max_epochs,
            micro_batches=parts,
            same_every_epoch=trainer.overfit_batches > 0,  # type: ignore[attr-defined]
        )
        if self._loaded is not None:
            self._loader.load_state_dict(self._loaded)
            self._loaded = None
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """The training loader's place.

        It is kept here as well because Lightning restores a loader's own state only where no loader
        has been asked for before, which the schedule does: it wants to know the number of steps.
        """
        return {} if self._loader is None else {"train": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the place for the training loader to come."""
        self._loaded = state_dict.get("train")

    def val_dataloader(self) -> loaders.EvaluationLoader:
        """The validation split: clean images, and views for the loss."""
        return self.evaluation_loader("val", "both")

    def test_dataloader(self) -> loaders.EvaluationLoader:
        """The test split: clean images, and views for the loss."""
        return self.evaluation_loader("test", "both")

    def predict_dataloader(self) -> loaders.EvaluationLoader:
        """Clean images of `predict_split`."""
        return self.evaluation_loader(self.predict_split, "clean")

    def on_after_batch_transfer(
        self, batch: Batch, dataloader_idx: int
    ) -> Views | MicroBatches | EvaluationBatch:
        """Makes views (in training), or clean images (and views) of a batch, on its device.

        With micro-batches, views are left to be made by the model, one micro-batch at a time.
        """
        trainer = self.trainer
        assert trainer is not None
        if not trainer.training:
            return self.make_clean(batch, views=trainer.state.fn != TrainerFn.PREDICTING)
        if self._loader is None:  # somebody has brought their own
            return self.make_views(batch)
        parts, counts, views = self._loader.parts, self._loader.counts, count_of(self.makes_views)
        if len(parts) > 1:
            return MicroBatches(batch.split(parts), self.make_views, counts, views)
        return self.make_views(batch)._replace(counts=counts)

    def teardown(self, stage: str | None = None) -> None:
        """Ends worker processes."""
        for source in self.splits[:3] if self.channels is not None else ():
            if source is not None:
                source.close()

    def on_exception(self, exception: BaseException) -> None:
        """Ends worker processes: Lightning doesn't tear down what has failed."""
        self.teardown()

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where nothing is labelled."""
        return len(self.splits.classes)

    def evaluation_loader(
        self, split: Split, cut: Cut, *, labelled_only: bool = False
    ) -> loaders.EvaluationLoader:
        """Each image of a split once, over all ranks.

        Args:
            split: train, val or test.
            cut: whether clean images, views or both are wanted.
            labelled_only: leave out unlabelled images, if there are labelled ones for all ranks.

        Raises:
            UserError: no such split, or fewer than 2 images a rank in it, or in a batch of views.
        """
        if (source := getattr(self.splits, split)) is None:
            raise UserError(
                f"{self.dataset} at {self.root} has no {split} split: give the data set one "
                "(a folder's train/, val/ and test/, a manifest's split), or score another split"
            )
        rank, world = self._ranks()
        rows = loaders.scored_rows(source.labels, split, world, labelled_only=labelled_only)
        # Of clean images nothing depends on the others in their batch.
        size = max(self.batch_size, 2 * world * (cut == "clean"))
        loaders.check_batch(size, world)
        return loaders.EvaluationLoader(self._place(source), size, rank, world, cut, rows)

    def apart(self) -> "ContrastiveDataModule":
        """The same data, and their workers, without a trainer: for one process alone."""
        twin = copy.copy(self)
        twin.trainer = twin._loader = None
        return twin

    def make_views(self, batch: Batch) -> Views:
        """Views of each image of a batch."""
        return views_of(self.makes_views, batch)

    def make_clean(self, batch: Batch, *, views: bool) -> EvaluationBatch:
        """The clean images of a batch, and with `views` those of each as well."""
        made = self.make_views(batch) if views else None
        return clean_of(self.makes_views, self.views, batch, made)

    def _place(self, source: sources.Source) -> sources.Source:
        """Keeps a set on the GPU where it fits."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda":
            return source
        free, _ = torch.cuda.mem_get_info(device)
        return source.on(device, RESIDENT_SHARE * free)

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
