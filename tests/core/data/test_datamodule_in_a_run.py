"""What Lightning gets from the data module, step by step: on ranks, in parts, over a resume."""

import multiprocessing
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from datamodules import ready, trainer
from PIL import Image
from recording import SaveEveryStep
from torch import Tensor

from simclr_pl import ContrastiveDataModule, SimCLRViews, UserError
from simclr_pl.core.batch import UNLABELLED, Batch, EvaluationBatch, MicroBatches, Views
from simclr_pl.core.views.crop import CLEAN_SHARE
from simclr_pl.images.datasets import load

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
    said = rf"micro_batch_size is {size}, but must be at least {least}, so that each of {world}"
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
def test_data_apart_are_the_same_and_disturb_nothing_that_goes_on(folder: Path) -> None:
    data = ready(dataset="folder", root=str(folder), image_size=16, batch_size=4, num_workers=1)
    loader = data.evaluation_loader("train", "both")
    begun = iter(loader)
    first = next(begun)
    twin = data.apart()
    whole = next(iter(twin.evaluation_loader("train", "both")))
    assert torch.equal(whole.images, first.images)
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
        sentence = f"data.batch_size is {batch_size}, but must be at least {2 * world}: two images"
        with pytest.raises(UserError, match=sentence):
            data.evaluation_loader("val", "both")
        with pytest.raises(UserError, match=sentence):
            data.val_dataloader()
        batches = list(data.evaluation_loader("val", "clean"))
        assert min(len(batch.index) for batch in batches) > 0
        seen += [batch.index for batch in batches]
        assert all(len(data.make_clean(b, views=False).clean) == len(b.index) for b in batches[:2])
    assert torch.cat(seen).sort().values.equal(torch.arange(len(data.splits.val)))
