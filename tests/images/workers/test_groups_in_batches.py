"""Groups in batches: those of the images that are there, for any ranks, workers, bad images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from manifests import write_manifest
from photographs import photograph

from simclr_pl import ContrastiveDataModule
from simclr_pl.commands.pack.pack import pack
from simclr_pl.core.batch import UNGROUPED, Batch, EvaluationBatch, MicroBatches
from simclr_pl.core.data.loaders import EvaluationLoader, TrainLoader
from simclr_pl.images.datasets import load

N, BATCH = 41, 8
BAD = (3, 4, 17, 30)

forks = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process:DeprecationWarning"
)


def group_of(image: int) -> str:
    """Image 5 has no group."""
    return "" if image == 5 else f"place {image % 7}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images cannot be decoded."""
    folder = tmp_path_factory.mktemp("grouped")
    rows = []
    for number in range(N):
        path = folder / f"{number:02d}.jpg"
        photograph(40, 30, number).save(path)
        if number in BAD:
            path.write_bytes(path.read_bytes()[:600] if number % 2 else b"")
        rows.append([path.name, group_of(number)])
    return write_manifest(folder / "images.csv", rows, "path,group")


def groups(batch: Any) -> list[str]:
    """Names of a batch's groups, where group k is `place k`."""
    return ["" if group == UNGROUPED else f"place {group}" for group in batch.groups.tolist()]


@pytest.fixture(scope="module")
def data(root: Path) -> ContrastiveDataModule:
    return data_of(root)


def data_of(root: Path, dataset: str = "manifest") -> ContrastiveDataModule:
    data = ContrastiveDataModule(
        dataset, str(root), BATCH, image_size=12, num_workers=0, seed=1, on_bad_image="skip"
    )
    data.setup()
    for source in (data.whole.train, data.splits.train):
        source.unreadable = None  # type: ignore[attr-defined]  # a tenth of them is bad
    return data


@forks
@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_groups_are_those_of_the_images_that_are_there(
    data: ContrastiveDataModule, workers: int
) -> None:
    source = data.whole.train.prepared(data.views, data.views, workers)
    for world in (1, 2, 3):
        for epoch in range(2):
            for rank in range(world):
                loader = TrainLoader(source, BATCH, rank, world, 1, lambda e=epoch: e)  # type: ignore[misc]
                for batch in loader:
                    assert batch.groups is not None
                    assert batch.groups.dtype == torch.int64
                    assert groups(batch) == list(map(group_of, batch.index.tolist()))
                    assert not set(batch.index.tolist()) & set(BAD)
        seen = []
        for rank in range(world):
            for batch in EvaluationLoader(source, BATCH, rank, world, "both"):
                assert groups(batch) == list(map(group_of, batch.index.tolist()))
                seen += batch.index.tolist()
        assert sorted(seen) == [number for number in range(N) if number not in BAD]
    source.close()


def test_views_and_micro_batches_have_the_groups_of_their_images(
    data: ContrastiveDataModule,
) -> None:
    batch = next(iter(TrainLoader(data.splits.train, BATCH, 0, 1, 1, lambda: 0)))
    views = data.make_views(batch)
    assert views.groups is not None
    assert groups(views) == list(map(group_of, views.index.tolist()))
    assert groups(views) == groups(batch) * 2
    parts = MicroBatches(batch.split([3, 3, 2]), data.make_views)
    assert parts.groups is not None
    assert parts.groups.equal(views.groups)
    assert [len(part.groups) for part in parts.parts if part.groups is not None] == [3, 3, 2]
    moved = batch.to(torch.device("meta"))
    assert moved.groups is not None
    assert moved.groups.device.type == "meta"
    clean = data.make_clean(batch, views=True)
    assert isinstance(clean, EvaluationBatch)
    assert clean.views is not None
    assert clean.views.groups is not None


def test_data_without_groups_have_none() -> None:
    data = ContrastiveDataModule("digits", batch_size=8)
    data.setup()
    batch = next(iter(TrainLoader(data.splits.train, 8, 0, 1, 1, lambda: 0)))
    assert batch.groups is None
    assert data.make_views(batch).groups is None
    assert MicroBatches(batch.split([4, 4]), data.make_views).groups is None
    assert batch.to(torch.device("cpu")).groups is None


def test_a_packed_manifest_has_its_groups_names_and_holdout(root: Path, tmp_path: Path) -> None:
    bad = {f"{number:02d}.jpg" for number in BAD}
    lines = root.read_text().splitlines()
    good = [line for line in lines if line.split(",")[0] not in bad]
    listed = root.with_name("good.csv")
    listed.write_text("\n".join(good), encoding="utf-8")
    pack(str(listed), str(tmp_path / "set"), num_workers=0)
    for seed in range(8):
        one: Any = load("manifest", listed, seed)
        other: Any = load("packed", tmp_path / "set", seed)
        assert list(other.val.names) == list(one.val.names)
        for name in ("train", "val"):
            mine, its = getattr(one, name), getattr(other, name)
            assert its.groups.equal(mine.groups)
            assert list(its.group_names) == mine.group_names
    packed = data_of(tmp_path / "set", "packed")
    batch: Batch = next(packed.splits.train.batches([torch.tensor([7, 2, 5])], 0, "views"))
    assert groups(batch) == [
        group_of(int(packed.splits.train.names[place][:2])) for place in (7, 2, 5)
    ]
