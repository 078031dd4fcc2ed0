"""The data of fine-tuning: the same few labels for everybody, one crop of each image an epoch."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from commands import QUIET
from photographs import write_digits
from torch import Tensor

from simclr_pl import ContrastiveDataModule, SimCLRViews, UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.randomness import epoch_order
from simclr_pl.images.splits import draw_fraction
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule, LabelledImages


def labelled(fraction: float = 0.1, **data: Any) -> LabelledDataModule:
    module = LabelledDataModule(fraction, **data)
    module.setup()
    return module


class Collecting(L.LightningModule):
    """Keeps the batches that a trainer hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[LabelledImages]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: LabelledImages, batch_idx: int) -> Tensor:
        self.seen["train"].append(batch)
        return self.weight * 0

    def validation_step(self, batch: LabelledImages, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: LabelledImages, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


def collect(data: LabelledDataModule, epochs: int = 1) -> dict[str, list[LabelledImages]]:
    """Batches of training with its validations, and of a test where there is one."""
    model = Collecting()
    trainer = L.Trainer(
        **QUIET, max_epochs=epochs, use_distributed_sampler=False, num_sanity_val_steps=0
    )
    trainer.fit(model, data)
    if data.splits.test is not None:
        trainer.test(model, data, verbose=False)
    return model.seen


def together(batches: list[LabelledImages]) -> LabelledImages:
    return LabelledImages(*map(torch.cat, zip(*batches, strict=True)))


# Which images -------------------------------------------------------------------------------------


def test_train_is_the_drawn_fraction_and_val_and_test_are_whole() -> None:
    data, whole = labelled(0.1, seed=4), ContrastiveDataModule("digits", seed=4)
    whole.setup()
    chosen = draw_fraction(whole.splits.train.labels, 0.1, 4)
    assert data.splits.train.images.equal(whole.splits.train.images[chosen])
    assert data.splits.train.labels.equal(whole.splits.train.labels[chosen])
    assert data.labels == len(chosen) == 130
    for one, other in zip(data.splits[1:3], whole.splits[1:3], strict=True):
        assert one.images.equal(other.images)
    data.setup()  # Lightning asks again at each stage
    assert data.labels == 130


def test_the_images_are_the_same_whatever_the_rest_of_the_recipe_is() -> None:
    torch.manual_seed(9)
    one = labelled(0.1, seed=1)
    other = labelled(0.1, seed=1, batch_size=17, image_size=12, flip=0.0)
    assert one.splits.train.images.equal(other.splits.train.images)
    assert not one.splits.train.images.equal(labelled(0.1, seed=2).splits.train.images)


def test_all_labels_are_those_of_train_and_none_of_the_validation_holdout() -> None:
    data = labelled(1.0)
    assert data.labels == 1312
    assert UNLABELLED not in data.splits.train.labels
    held = {image.numpy().tobytes() for image in data.splits.val.images}
    assert not held & {image.numpy().tobytes() for image in data.splits.train.images}


@pytest.mark.parametrize(
    ("most", "batch", "steps"),
    # 130 images: as few batches as hold them all, of one size.
    [(256, 130, 1), (130, 130, 1), (129, 65, 2), (50, 43, 3), (64, 43, 3), (2, 2, 65)],
)
def test_an_epoch_is_cut_into_equal_batches(most: int, batch: int, steps: int) -> None:
    data = labelled(batch_size=most)
    assert (data.batch_size, data.steps) == (batch, steps)
    sizes = [len(b.labels) for b in collect(data)["train"]]
    assert sizes == [batch] * steps
    assert data.labels - sum(sizes) < steps  # so few wait for the next epoch


def npz(path: Path, labels: list[int], **splits: Any) -> Path:
    """An image of its own for each label, and further splits of the same images."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8)).astype(np.uint8)
    held: dict[str, Any] = {"train_images": images, "train_labels": np.array(labels)}
    for name, of in splits.items():
        held[f"{name}_images"] = images
        if of is not None:
            held[f"{name}_labels"] = np.array(of)
    np.savez(path, **held)
    return path


def test_a_batch_of_two_is_never_cut_down_to_one(tmp_path: Path) -> None:
    labels = [0, 1] * 2 + [0]
    data = labelled(
        1.0, dataset="npz", root=npz(tmp_path / "a.npz", labels, val=labels), batch_size=2
    )
    assert (data.labels, data.batch_size, data.steps) == (5, 2, 2)


# What is made of them -----------------------------------------------------------------------------


def test_training_sees_the_first_view_s_crops_and_flips_in_each_epoch_s_order() -> None:
    data = labelled(0.1, seed=3, batch_size=50, scale=(0.3, 1.0))
    seen = together(collect(data, epochs=2)["train"])
    views = SimCLRViews(
        8, scale=(0.3, 1.0), jitter=0, grayscale=0, blur=0, mean=data.mean, std=data.std, seed=3
    )  # type: ignore[arg-type]
    places = torch.cat([epoch_order(3, epoch, 130)[:129] for epoch in (0, 1)])
    assert seen.labels.equal(data.splits.train.labels[places])
    for epoch in (0, 1):
        rows = slice(129 * epoch, 129 * (epoch + 1))
        index = places[rows]
        first, _ = views(data.splits.train.images[index], index, epoch)
        torch.testing.assert_close(seen.images[rows], first)


def test_colours_stay_as_they_are_whatever_pretraining_did() -> None:
    """A crop of the whole image, never mirrored, is the image."""
    whole: dict[str, Any] = {"scale": (1.0, 1.0), "flip": 0.0}
    data = labelled(0.1, **whole)
    seen = together(collect(data)["train"])
    images = data.splits.train.images[epoch_order(0, 0, 130)]
    # Its sides' ratio is still drawn: squares are among them, and no colour is another.
    same = (seen.images - data.views.clean(images)).abs().amax((1, 2, 3)) < 1e-5
    assert bool(same.any())
    assert float(seen.images.max()) <= float(data.views.clean(images).max()) + 1e-5


def test_evaluation_sees_each_image_once_clean_and_in_order() -> None:
    data = labelled(0.1, batch_size=50)
    seen = collect(data)
    for split, source in (("val", data.splits.val), ("test", data.splits.test)):
        found = together(seen[split])
        assert found.labels.equal(source.labels)
        torch.testing.assert_close(found.images, data.views.clean(source.images))


# Image files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as image files of several sizes, a folder a class."""
    root = tmp_path_factory.mktemp("pictures")
    write_digits(root, 80)
    return root


@pytest.mark.processes
def test_files_are_cut_by_workers_as_without_them(pictures: Path) -> None:
    seen = []
    for workers in (0, 1):
        data = labelled(
            0.5,
            dataset="folder",
            root=str(pictures),
            image_size=16,
            batch_size=20,
            num_workers=workers,
        )
        seen.append(collect(data, epochs=2))
        assert data.labels == 36
    for split in ("train", "val"):
        one, other = (together(found[split]) for found in seen)
        assert one.images.equal(other.images)
        assert one.labels.equal(other.labels)
    train = together(seen[0]["train"])
    assert train.images.shape == (2 * 36, 3, 16, 16)
    assert not train.images[:36].equal(train.images[36:])


# What goes wrong ----------------------------------------------------------------------------------


def test_a_fraction_that_leaves_a_class_empty_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"label_fraction 0.001 leaves class \d empty"):
        labelled(0.001)


def test_a_split_that_cannot_be_scored_is_a_sentence(tmp_path: Path) -> None:
    labels = [0, 1] * 20
    unknown = [UNLABELLED] * 40
    root = npz(tmp_path / "a.npz", labels, val=labels, test=unknown)
    data = labelled(1.0, dataset="npz", root=str(root))
    data.check_scored("val")
    with pytest.raises(
        UserError, match="the test split has no labels, which this evaluation needs"
    ):
        data.check_scored("test")
    data = labelled(1.0, dataset="npz", root=str(npz(tmp_path / "b.npz", labels, val=labels)))
    with pytest.raises(UserError, match="has no test split"):
        data.check_scored("test")
