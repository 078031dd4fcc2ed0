"""The data module: what it derives, what it refuses, and what Lightning gets from it."""

import math
import multiprocessing
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simclr_pl import ContrastiveDataModule, SimCLRViews, UserError
from simclr_pl.core.batch import UNLABELLED, Batch, EvaluationBatch, MicroBatches, Views
from simclr_pl.core.data.sources import ArrayImages, Splits
from simclr_pl.core.views.crop import CLEAN_SHARE
from simclr_pl.images.datasets import load

# Lightning 2.6 asks torch for a name that torch 2.15 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

Seen = tuple[str, int, Any]


class Watcher(L.LightningModule):
    """Notes what each step is given, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Seen] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        self.seen.append(("train", self.current_epoch, batch))
        return self.weight.sum()

    def validation_step(self, batch: Any, _: int) -> None:
        self.seen.append(("val", self.current_epoch, batch))

    def test_step(self, batch: Any, index: int) -> None:
        self.seen.append(("test", self.current_epoch, batch))

    def predict_step(self, batch: Any, _: int) -> Any:
        self.seen.append(("predict", self.current_epoch, batch))
        return batch.index

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def batches(self, stage: str) -> list[Any]:
        return [batch for name, _, batch in self.seen if name == stage]

    def indices(self, epoch: int | None = None) -> list[list[int]]:
        return [
            batch.index.chunk(2)[0].tolist()
            for name, e, batch in self.seen
            if name == "train" and epoch in (None, e)
        ]


def trainer(**kwargs: Any) -> L.Trainer:
    plain = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return L.Trainer(**{**plain, **kwargs})


def ready(**kwargs: Any) -> ContrastiveDataModule:
    data = ContrastiveDataModule(**kwargs)
    data.prepare_data()
    data.setup()
    return data


def write_npz(path: Path, *shape: int, train: int = 40, **others: int) -> Path:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": train, **others}.items():
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    np.savez(path, **arrays)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = generator.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


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


# Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 0, -5])
def test_a_batch_below_two_is_refused(batch_size: int) -> None:
    with pytest.raises(UserError, match=rf"data\.batch_size is {batch_size}, .* at least 2"):
        ContrastiveDataModule(batch_size=batch_size)


def test_a_batch_larger_than_train_is_refused_with_the_largest_possible() -> None:
    data = ready(batch_size=5000)
    data.trainer = trainer()
    size = len(data.splits.train)
    with pytest.raises(UserError, match=f"digits has {size} images .* give at most {size}"):
        data.train_dataloader()


def test_a_batch_too_small_for_the_devices_is_refused() -> None:
    data = ready(batch_size=5)
    data.trainer = trainer(devices=3, strategy="ddp")
    with pytest.raises(UserError, match=r"data\.batch_size is 5 over 3 devices"):
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


@pytest.mark.parametrize("channels", [2, 4])
def test_colour_operations_on_other_than_gray_or_rgb_are_refused(
    tmp_path: Path, channels: int
) -> None:
    file = str(write_npz(tmp_path / "a.npz", 8, 8, channels))
    with pytest.raises(UserError, match=f"{channels} channels"):
        ready(dataset="npz", root=file)


def test_without_colour_operations_any_number_of_channels_goes(tmp_path: Path) -> None:
    file = str(write_npz(tmp_path / "a.npz", 8, 8, 5))
    data = ready(dataset="npz", root=file, jitter=0.0, grayscale=0.0, batch_size=16)
    data.trainer = trainer()
    made = data.make_views(next(iter(data.train_dataloader())))
    assert made.views.shape == (32, 5, 8, 8)


# What Lightning gets ---------------------------------------------------------------------------


def test_every_stage_gets_its_kind_of_batch() -> None:
    data, module = ContrastiveDataModule(batch_size=256), Watcher()
    run = trainer()
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    indices = run.predict(module, datamodule=data)
    splits = load("digits", "")
    assert splits.test is not None
    # One batch or two of validation come before training: Lightning's sanity check.
    assert [name for name, _, _ in module.seen[:3]] == ["val", "train", "train"]
    for batch in module.batches("train"):
        assert isinstance(batch, Views)
        assert batch.views.shape == (512, 1, 8, 8)
        assert not batch.views.requires_grad
    for stage, size in (("val", len(splits.val)), ("test", len(splits.test))):
        for batch in module.batches(stage):
            assert isinstance(batch, EvaluationBatch)
            assert isinstance(batch.views, Views)
            assert batch.clean.shape == batch.views.views.chunk(2)[0].shape
            assert torch.equal(batch.views.labels, batch.labels.repeat(2))
        seen = torch.cat([batch.index for batch in module.batches(stage)])
        assert seen[-size:].tolist() == list(range(size))
    for batch in module.batches("predict"):
        assert isinstance(batch, EvaluationBatch)
        assert batch.views is None
    assert torch.cat(list(indices or [])).tolist() == list(range(len(splits.val)))


def test_steps_are_whole_batches_in_the_order_of_each_epoch() -> None:
    data, module = ContrastiveDataModule(batch_size=512, seed=3), Watcher()
    run = trainer(max_epochs=2)
    run.fit(module, datamodule=data)
    assert run.global_step == 2 * (len(data.splits.train) // 512)
    from simclr_pl.core.randomness import epoch_order

    for epoch in (0, 1):
        want = epoch_order(3, epoch, len(data.splits.train))[:1024].view(2, 512).tolist()
        assert module.indices(epoch) == want


def test_training_views_are_those_of_the_epoch_and_index() -> None:
    data, module = ContrastiveDataModule(batch_size=512, seed=3), Watcher()
    trainer(max_epochs=2).fit(module, datamodule=data)
    images, labels = data.splits.train.images, data.splits.train.labels
    for name, epoch, batch in module.seen:
        if name == "train":
            index = batch.index.chunk(2)[0]
            views = data.views(images[index], index, epoch)
            assert batch.index.equal(index.repeat(2))
            assert torch.equal(batch.views, torch.cat(views))
            assert batch.epoch == epoch
            assert torch.equal(batch.labels, labels[batch.index])


class SaveEveryStep(L.Callback):
    """Checkpoints as a run writes them: behind each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path: Path) -> None:
    """Two batches an epoch, six in all: a resume in mid-epoch, and at an epoch's end."""
    straight = Watcher()
    run = trainer(max_epochs=3, callbacks=SaveEveryStep(tmp_path))
    run.fit(straight, datamodule=ContrastiveDataModule(batch_size=512))
    assert run.global_step == 6
    for step in range(1, 6):
        resumed = Watcher()
        data = ContrastiveDataModule(batch_size=512)
        trainer(max_epochs=3).fit(resumed, datamodule=data, ckpt_path=tmp_path / f"{step}.ckpt")
        assert resumed.indices() == straight.indices()[step:]
        for mine, whole in zip(
            resumed.batches("train"), straight.batches("train")[step:], strict=True
        ):
            assert torch.equal(mine.views, whole.views)


def test_limit_train_batches_leaves_each_epoch_its_own_order() -> None:
    data, module = ContrastiveDataModule(batch_size=256, seed=1), Watcher()
    trainer(max_epochs=3, limit_train_batches=2).fit(module, datamodule=data)
    assert [len(module.indices(epoch)) for epoch in range(3)] == [2, 2, 2]
    assert len({tuple(batch) for batch in module.indices()}) == 6


def test_overfit_batches_repeats_the_same_views_in_every_epoch() -> None:
    data, module = ContrastiveDataModule(batch_size=256), Watcher()
    trainer(max_epochs=3, overfit_batches=2).fit(module, datamodule=data)
    assert [len(module.indices(epoch)) for epoch in range(3)] == [2, 2, 2]
    assert module.indices(0) == module.indices(1) == module.indices(2)
    batches = module.batches("train")
    assert torch.equal(batches[0].views, batches[2].views)
    assert torch.equal(batches[1].views, batches[5].views)


@pytest.mark.parametrize("world", [2, 3])
def test_this_ranks_slice_of_a_global_batch(world: int) -> None:
    data = ready(batch_size=100)
    data.trainer = trainer()
    whole = next(iter(data.train_dataloader())).index
    val = next(iter(data.val_dataloader())).index
    data.trainer = trainer(devices=world, strategy="ddp")
    share = 100 // world
    assert next(iter(data.train_dataloader())).index.tolist() == whole[:share].tolist()
    mine = next(iter(data.val_dataloader())).index
    assert mine.tolist() == val[: len(val) // world].tolist()


class Counting(ContrastiveDataModule):
    """Counts the views it makes."""

    made = 0

    def make_views(self, batch: Batch) -> Views:
        self.made += len(batch.labels)
        return super().make_views(batch)


class InParts(Watcher):
    """A model that takes at most so many images at a time."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.micro_batch_size = size


@pytest.mark.parametrize(
    ("size", "parts"), [(100, [86, 85, 85]), (128, [128, 128]), (1, [1] * 256)]
)
def test_a_model_of_micro_batches_gets_parts_whose_views_are_not_made_yet(
    size: int, parts: list[int]
) -> None:
    data, module, whole = Counting(batch_size=256), InParts(size), Watcher()
    few = {"limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer(**few).fit(module, datamodule=data)
    validated = len(module.batches("val")[0].labels)
    assert data.made == validated
    trainer(**few).fit(whole, datamodule=ContrastiveDataModule(batch_size=256))
    for batch, want in zip(module.batches("train"), whole.batches("train"), strict=True):
        assert isinstance(batch, MicroBatches)
        assert [len(part.index) for part in batch.parts] == parts
        assert batch.labels.equal(want.labels)
        made = [batch.make_views(part) for part in batch.parts]
        assert batch.index.equal(want.index)
        assert batch.epoch == want.epoch
        for column in ("views", "labels", "index"):
            views = zip(*(getattr(part, column).chunk(2) for part in made), strict=True)
            assert torch.cat([torch.cat(rows) for rows in views]).equal(getattr(want, column))
        again = batch.make_views(batch.parts[-1])
        assert all(a.equal(b) for a, b in zip(again[:3], made[-1][:3], strict=True))


@pytest.mark.parametrize("size", [256, 1000, None])
def test_a_model_that_takes_a_batch_at_a_time_gets_its_views(size: int | None) -> None:
    module = InParts(size)
    trainer(limit_train_batches=1, limit_val_batches=0).fit(
        module, datamodule=ContrastiveDataModule(batch_size=256)
    )
    assert isinstance(module.batches("train")[0], Views)


@pytest.mark.parametrize(
    ("world", "batch_size", "size", "least"),
    [(3, 12, 2, 6), (3, 7, 3, 6), (4, 100, 1, 8), (2, 5, 2, 4)],
)
def test_micro_batches_too_small_for_the_devices_are_refused(
    world: int, batch_size: int, size: int, least: int
) -> None:
    data = ready(batch_size=batch_size)
    data.trainer = trainer(devices=world, strategy="ddp")
    data.trainer.strategy.connect(InParts(size))
    said = rf"model\.micro_batch_size is {size} over {world} devices.* give at least {least}$"
    with pytest.raises(UserError, match=said):
        data.train_dataloader()
    data.trainer.strategy.connect(InParts(least))
    assert min(data.train_dataloader().parts) >= 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_predict_split_is_what_predict_encodes(split: Any) -> None:
    data, module = ContrastiveDataModule(predict_split=split), Watcher()
    trainer().predict(module, datamodule=data)
    source = getattr(load("digits", ""), split)
    labels = torch.cat([batch.labels for batch in module.batches("predict")])
    assert torch.equal(labels, source.labels)
    assert (UNLABELLED in labels) == (split == "train")


def test_tools_work_without_a_trainer() -> None:
    data = ready(batch_size=64)
    batch = next(iter(data.evaluation_loader("val", "both")))
    made = data.make_clean(batch, views=True)
    assert made.views is not None
    first, second = data.views(batch.images, batch.index, 0)
    assert torch.equal(made.clean, data.views.clean(batch.images))
    assert torch.equal(made.views.views, torch.cat([first, second]))
    assert torch.equal(made.labels, batch.labels)
    assert data.make_clean(batch, views=False).views is None


@pytest.mark.processes
def test_data_apart_is_the_same_and_ends_without_disturbing_what_goes_on(folder: Path) -> None:
    data = ready(dataset="folder", root=str(folder), image_size=16, batch_size=4, num_workers=1)
    loader = data.evaluation_loader("train", "both")
    begun = iter(loader)
    first = next(begun)
    twin = data.apart()
    whole = next(iter(twin.evaluation_loader("train", "both")))
    assert torch.equal(whole.images, first.images)
    twin.teardown()
    rest = [batch.index.tolist() for batch in begun]
    assert sum(rest, first.index.tolist()) == list(range(len(data.splits.train)))
    assert len(multiprocessing.active_children()) == 1
    data.teardown()
    assert not multiprocessing.active_children()


def test_files_go_through_the_same_steps(folder: Path) -> None:
    data = ContrastiveDataModule(
        "folder", str(folder), batch_size=8, image_size=16, num_workers=0, jitter=0.5
    )
    module = Watcher()
    run = trainer()
    run.fit(module, datamodule=data)
    run.predict(module, datamodule=data)
    assert len(module.batches("train")) == 2
    for batch in module.batches("train"):
        assert isinstance(batch, Views)
        assert batch.views.shape == (16, 3, 16, 16)
        assert not torch.equal(*batch.views.chunk(2))
    (predicted,) = module.batches("predict")
    validated = module.batches("val")[-1]
    assert torch.equal(validated.clean, predicted.clean)
    assert torch.equal(validated.index, predicted.index)
    # The clean image is the central seven eighths, normalised.
    path = data.splits.val.paths[0]
    image = Image.open(path).convert("RGB")
    side = round(min(image.size) * CLEAN_SHARE)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    crop = image.crop((left, top, left + side, top + side)).resize(
        (16, 16), Image.Resampling.BILINEAR
    )
    pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
    want = SimCLRViews(16, mean=data.mean, std=data.std).clean(pixels)
    torch.testing.assert_close(predicted.clean[:1], want)


@pytest.mark.parametrize(("world", "batch_size"), [(2, 3), (4, 2), (4, 7)])
def test_a_batch_too_small_for_all_ranks(world: int, batch_size: int) -> None:
    """Views are compared with those of their batch, which stays as it is; clean images are not."""
    seen = []
    for rank in range(world):
        data = ContrastiveDataModule("digits", batch_size=batch_size)
        data.setup()
        data.trainer = trainer(devices=world, strategy="ddp")
        data._ranks = lambda rank=rank: (rank, world)  # type: ignore[method-assign]
        sentence = f"data.batch_size is {batch_size} over {world} devices: give each at least 2"
        with pytest.raises(UserError, match=sentence):
            data.evaluation_loader("val", "both")
        with pytest.raises(UserError, match=sentence):
            data.val_dataloader()
        batches = list(data.evaluation_loader("val", "clean"))
        assert min(len(batch.index) for batch in batches) > 0
        seen += [batch.index for batch in batches]
        assert all(len(data.make_clean(b, views=False).clean) == len(b.index) for b in batches[:2])
    assert torch.cat(seen).sort().values.equal(torch.arange(len(data.splits.val)))


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
