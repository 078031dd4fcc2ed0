"""The data module: what it derives, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datamodules import ready, trainer
from noise import write_npz

from simclr_pl import ContrastiveDataModule, UserError
from simclr_pl.core.data.sources import ArrayImages, Splits
from simclr_pl.images.datasets import load

# Derived ---------------------------------------------------------------------------------------


def test_everything_about_digits_is_derived() -> None:
    data = ready()
    assert (data.channels, data.image_size, data.num_classes) == (1, 8, 10)
    mean, std, _ = load("digits", "").train.statistics()
    assert data.mean == mean
    assert data.std == std
    assert data.views.image_size == 8
    assert list(data.views.mean) == pytest.approx(list(mean))
    assert list(data.views.std) == pytest.approx(list(std))


def test_nothing_is_known_before_setup() -> None:
    data = ContrastiveDataModule(mean=(0.5,), std=(0.5,), image_size=28)
    assert (data.channels, data.image_size, data.mean, data.std) == (None, None, None, None)


def test_image_size_mean_and_std_can_be_given() -> None:
    data = ready(image_size=16, mean=(0.25,), std=(0.5,))
    assert (data.image_size, data.mean, data.std) == (16, (0.25,), (0.5,))
    data.trainer = trainer()
    batch = next(iter(data.train_dataloader()))
    assert data.make_views(batch).views.shape[-2:] == (16, 16)


def test_mean_alone_can_be_given() -> None:
    data = ready(mean=(0.25,))
    assert data.mean == (0.25,)
    assert data.std == load("digits", "").train.statistics()[1]


def test_a_folders_images_are_rgb_of_224_with_imagenets_statistics(folder: Path) -> None:
    data = ready(dataset="folder", root=str(folder), num_workers=0)
    assert (data.channels, data.image_size, data.num_classes) == (3, 224, 2)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.229, 0.224, 0.225)


def test_colour_images_that_are_not_square_give_their_shorter_side(tmp_path: Path) -> None:
    data = ready(dataset="npz", root=str(write_npz(tmp_path / "a.npz", 12, 20, 3)))
    assert (data.channels, data.image_size, data.num_classes) == (3, 12, 4)
    assert data.mean is not None
    assert len(data.mean) == 3


def test_setup_twice_reads_once() -> None:
    data = ready()
    splits = data.splits
    data.setup("fit")
    data.setup("test")
    assert data.splits is splits


def test_the_seed_is_the_one_given_or_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ContrastiveDataModule().seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert ContrastiveDataModule().seed == 11
    assert ContrastiveDataModule(seed=0).seed == 0
    assert ready(seed=4).views.seed == 4


def test_the_split_seed_chooses_val() -> None:
    chosen = [ready(split_seed=seed).splits.val.images for seed in (0, 0, 5)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert torch.equal(chosen[2], load("digits", "", 5).val.images)


def test_the_recipe_reaches_the_views() -> None:
    recipe = {"scale": (0.3, 0.9), "flip": 0.1, "jitter": 0.2, "grayscale": 0.3, "blur": 0.4}
    views = ready(**recipe).views
    assert {name: getattr(views, name) for name in recipe} == recipe


def test_splits_from_python_are_read_as_the_options_say() -> None:
    images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2
    splits = Splits(ArrayImages(images, labels), ArrayImages(images, labels), None, ("a", "b"))
    for how, known in (("given", 40), ("none", 0)):
        data = ContrastiveDataModule(splits, batch_size=8, labels=how)
        data.prepare_data()
        data.setup()
        assert int((data.splits.train.labels >= 0).sum()) == known
    wrong = splits._replace(val=ArrayImages(images, labels + 1))
    with pytest.raises(UserError, match="val split has labels from 1 to 2"):
        ContrastiveDataModule(wrong, batch_size=8).setup()


# Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 0, -5])
def test_a_batch_below_two_is_refused(batch_size: int) -> None:
    with pytest.raises(UserError, match=rf"data\.batch_size is {batch_size}, .* at least 2"):
        ContrastiveDataModule(batch_size=batch_size)


def test_a_batch_larger_than_train_is_refused_with_the_largest_possible() -> None:
    data = ready(batch_size=5000)
    data.trainer = trainer()
    size = len(data.splits.train)
    with pytest.raises(UserError, match=f"must be at most {size}, the images that digits has"):
        data.train_dataloader()


def test_a_batch_too_small_for_the_devices_is_refused() -> None:
    data = ready(batch_size=5)
    data.trainer = trainer(devices=3, strategy="ddp")
    with pytest.raises(UserError, match=r"data\.batch_size is 5, but must be at least 6"):
        data.train_dataloader()


def test_a_split_too_small_for_the_devices_is_refused(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "a.npz", 8, 8, val=5)
    data = ready(dataset="npz", root=str(file), batch_size=8)
    data.trainer = trainer(devices=3, strategy="ddp")
    with pytest.raises(UserError, match="the val split has 5 images, too few for 3 devices"):
        data.val_dataloader()


@pytest.mark.parametrize(
    "bad",
    [
        {"image_size": 2},
        {"image_size": 0},
        {"scale": (0.9, 0.1)},
        {"flip": 2.0},
        {"jitter": -1.0},
        {"grayscale": -0.1},
        {"blur": 1.1},
        {"num_workers": -1},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_said_before_any_data_is_read(bad: dict[str, Any]) -> None:
    (key,) = bad
    with pytest.raises(UserError, match=rf"data\.{key}"):
        ContrastiveDataModule(dataset="cifar10", **bad)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_statistics_of_another_number_of_channels_are_refused(key: str) -> None:
    data = ContrastiveDataModule(**{key: (0.5, 0.5, 0.5)})
    with pytest.raises(UserError, match=rf"data\.{key} has 3 numbers, .* 1 channels"):
        data.setup()


@pytest.mark.parametrize("bad", [0.0, -0.2, math.nan, math.inf])
def test_a_standard_deviation_that_cannot_divide_is_refused(bad: float) -> None:
    with pytest.raises(UserError, match=rf"data\.std is \[{bad}\]"):
        ready(std=(bad,))


def test_a_split_that_is_not_there_is_said(folder: Path) -> None:
    data = ready(dataset="folder", root=str(folder))
    with pytest.raises(UserError, match=rf"folder at {folder} has no test split"):
        data.test_dataloader()


def test_an_unknown_data_set_is_said() -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        ContrastiveDataModule(dataset="digts").prepare_data()


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_bands_have_colours_changed_and_none_is_dropped_unless_that_is_asked_for(
    tmp_path: Path, channels: int
) -> None:
    file = str(write_npz(tmp_path / "a.npz", 8, 8, channels))
    data = ready(dataset="npz", root=file, batch_size=16)
    assert (data.views.jitter, data.views.grayscale) == (1.0, 0.0)
    assert ready(dataset="npz", root=file, grayscale=0.3).views.grayscale == 0.3
    data.trainer = trainer()
    made = data.make_views(next(iter(data.train_dataloader())))
    assert made.views.shape == (32, channels, 8, 8)


def test_without_colour_operations_any_number_of_channels_goes(tmp_path: Path) -> None:
    file = str(write_npz(tmp_path / "a.npz", 8, 8, 5))
    data = ready(dataset="npz", root=file, jitter=0.0, grayscale=0.0, batch_size=16)
    data.trainer = trainer()
    made = data.make_views(next(iter(data.train_dataloader())))
    assert made.views.shape == (32, 5, 8, 8)
