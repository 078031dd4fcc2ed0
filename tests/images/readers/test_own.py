"""Data sets of one's own: `data.dataset` as a class path, a function or an object."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datamodules
import lightning as L
import pytest
import torch
from commands import QUIET
from noise import pictures
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.fingerprint import fingerprint
from simclr_pl.images.readers import items
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import WorkerImages
from simclr_pl.images.workers.unreadable import Unreadable


class Items(Dataset[Any]):
    """Whatever is given, as the items of a Dataset."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        item = self.items[place]
        if isinstance(item, Exception):
            raise item
        return item


class Cells(Items):
    """Found by its class path."""

    def __init__(self, root: str, count: int = 40) -> None:
        super().__init__([(image, i % 4) for i, image in enumerate(pictures(count, 1, 8, 8))])
        self.root = root


def three_splits(root: str) -> dict[str, Any]:
    return {
        "train": Cells(root),
        "val": (pictures(8, 1, 8, 8), [0, 1, 2, 3] * 2),
        "test": pictures(6, 1, 8, 8).numpy(),
        "classes": ["a", "b", "c", "d"],
    }


def ready(given: Any, **options: Any) -> ContrastiveDataModule:
    return datamodules.ready(given, **({"batch_size": 16, "num_workers": 0} | options))


def photographs(count: int = 12) -> list[Image.Image]:
    """Of differing sizes."""
    shapes = [(20 + i, 30, 3) for i in range(count)]
    return [Image.fromarray(pictures(1, *shape)[0].numpy()) for shape in shapes]


# What is taken ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        f"{__name__}.Cells",
        {"class_path": f"{__name__}.Cells", "init_args": {"count": 40}},
        Cells,
        Cells("."),
        lambda: Cells("."),
        lambda: {"train": Cells(".")},
    ],
)
def test_a_dataset_is_read_once_into_memory_with_its_labels(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Cells.__module__])
    data = ready(given)
    train = data.whole.train
    assert isinstance(train, ArrayImages)
    assert train.images.equal(pictures(40, 1, 8, 8))
    assert data.num_classes == 4
    labels = train.labels.clone()
    assert data.whole.held is not None
    labels[data.whole.held] = data.whole.val.labels
    assert labels.tolist() == [0, 1, 2, 3] * 10
    assert "." not in data.dataset.replace(f"{__name__}.Cells", "")


def test_a_function_gives_several_splits_and_the_root_reaches_it(tmp_path: Path) -> None:
    data = ready(three_splits, root=str(tmp_path))
    assert data.splits.classes == ("a", "b", "c", "d")
    assert (len(data.splits.train), len(data.splits.val)) == (40, 8)
    assert data.splits.test is not None
    assert data.splits.test.labels.tolist() == [UNLABELLED] * 6
    assert data.whole.held is None
    assert data.dataset == "three_splits"


def test_items_without_labels_are_unlabelled_and_other_labels_are_named_after_themselves() -> None:
    assert ready(Items(list(pictures(40, 3, 8, 8)))).num_classes == 0
    far = Items([(image, 3 + 4 * (i % 2)) for i, image in enumerate(pictures(40, 1, 8, 8))])
    assert ready(far).splits.classes == ("3", "7")
    assert set(ready(far).splits.val.labels.tolist()) == {0, 1}


def test_declared_labels_are_taken_where_there_is_one_for_each_item() -> None:
    declared = Items(list(pictures(40, 1, 8, 8)))
    declared.targets = [i % 5 for i in range(40)]  # type: ignore[attr-defined]
    assert ready(declared).num_classes == 5
    declared.targets = [0]  # type: ignore[attr-defined]
    assert ready(declared).num_classes == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Items([torch.rand(1, 8, 8)] * 4), "torch.float32 .*but an image must be a uint8 tensor"),
        (Items([{"image": 3}] * 4), "a dict, but an image must be a uint8"),
        (Items([(pictures(1, 1, 8, 8)[0], 0.5)] * 4), "the label of item 0 .* whole number"),
        (
            Items([(pictures(1, 1, 8, 8)[0], torch.ones(40))] * 4),
            "label of item 0 .*--data.labels none",
        ),
        (Items([KeyError("lost")] * 4), "item 0 of .* cannot be read .KeyError: 'lost' at .*test_"),
        (Items([]), "train split is empty"),
        (lambda: {"training": 3}, "has 'training': give a mapping of train"),
        (lambda: 3, "is a int, but must be a torch.utils.data.Dataset"),
        (lambda: (pictures(4, 8, 8)[None].double(), [0]), "but must be uint8"),
        (lambda wide: 3, "needs the argument wide"),
        ("nowhere_at_all.Cells", "there is no module 'nowhere_at_all'"),
    ],
)
def test_what_is_no_images_is_refused_in_a_sentence(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"data.dataset.*{said}"):
        ready(given)


def test_an_iterable_dataset_is_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(UserError, match="IterableDataset, which has no images by number"):
        ready(Stream())


# What is read by workers --------------------------------------------------------------------------


def test_what_does_not_fit_memory_is_read_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "MEMORY_BYTES", 100)
    data = ready(Cells("."), image_size=8)
    assert isinstance(data.whole.train, WorkerImages)
    assert (data.channels, len(data.mean or ())) == (1, 1)
    batch = next(iter(data.splits.train.batches([torch.arange(5)], 0, "both")))
    assert batch.images.shape == (5, 3, 1, 8, 8)


def test_an_item_that_cannot_be_read_is_an_error_or_is_left_out() -> None:
    whole = [(image, 0) for image in photographs()]
    data = Items(whole)
    source = ready(data).whole.train
    assert isinstance(source, WorkerImages)
    data.items = [*whole[:4], (torch.rand(3, 9, 9), 0), *whole[5:]]
    views, plan = SimCLRViews(8), [torch.arange(12)]
    with pytest.raises(UserError, match=r"item 4 of .*uint8 tensor"):
        list(source.prepared(views, views, 0).batches(plan, 0, "clean"))
    source.reading, source.unreadable = Reading("skip"), Unreadable(Path(), 1000)
    skipping = source.prepared(views, views, 0)
    (batch,) = skipping.batches(plan, 0, "clean")
    assert batch.index.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


def test_the_fingerprint_is_of_pixels_labels_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (items.MEMORY_BYTES, 100):
        monkeypatch.setattr(items, "MEMORY_BYTES", most)
        changed = Cells(".")
        changed.items[7] = (255 - changed.items[7][0], changed.items[7][1])
        first, same, other = (fingerprint(ready(x).whole) for x in (Cells, Cells("."), changed))
        assert first == same != other


# Training -----------------------------------------------------------------------------------------


def test_an_object_from_python_trains() -> None:
    images = pictures(40, 3, 8, 8)
    trainer = L.Trainer(**QUIET, max_epochs=1, use_distributed_sampler=False)
    model = SimCLR(optimizer="sgd", warmup_epochs=0, projection_dim=8)
    data = ContrastiveDataModule(
        Items([(image, 0) for image in images]),  # type: ignore[arg-type]
        batch_size=20,
    )
    trainer.fit(model, data)
    assert trainer.global_step == 2
