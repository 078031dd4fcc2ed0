"""Files that cannot be read, stepped over: the same batches for any workers, ranks and resumes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from arrays import same_batches
from photographs import photograph
from torch import Tensor

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.batch import Batch
from simclr_pl.core.data.loaders import EvaluationLoader, TrainLoader
from simclr_pl.core.randomness import epoch_order
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.images.workers.unreadable import LEFT_OUT, Unreadable

N, BATCH, SEED = 41, 8, 5
BAD = (3, 4, 17, 30)

forks = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process:DeprecationWarning"
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four of them bad, by header or behind it."""
    folder = tmp_path_factory.mktemp("files")
    found = []
    for number in range(N):
        path = folder / f"{number:02d}.jpg"
        photograph(40, 30, number).save(path)
        if number in BAD:
            path.write_bytes(path.read_bytes()[:600] if number % 2 else b"")
        found.append(path)
    return found


@pytest.fixture
def views() -> SimCLRViews:
    return SimCLRViews(12, seed=SEED)


def source_of(
    paths: Sequence[Path], views: SimCLRViews, workers: int = 0, notes: Unreadable | None = None
) -> ImageFiles:
    files = ImageFiles(paths, torch.arange(len(paths)))
    files.reading, files.unreadable = Reading("skip"), notes
    return files.prepared(views, views, workers)


def trained(
    source: ImageFiles, epoch: int, rank: int = 0, world: int = 1, done: int = 0
) -> list[Batch]:
    loader = TrainLoader(source, BATCH, rank, world, SEED, lambda: epoch)
    if done:
        loader.load_state_dict({"epoch": epoch, "batches": done})
    return list(loader)


def taken(order: Tensor) -> list[int]:
    """The definition: places p + N/2, p + N/2 + 1, ... until one can be read."""
    found = []
    for place in range(len(order)):
        at = place
        if int(order[place]) in BAD:
            at = place + N // 2
            while int(order[at % N]) in BAD:
                at += 1
        found.append(int(order[at % N]))
    return found


@forks
@pytest.mark.processes
def test_another_image_takes_the_place_whatever_the_ranks_workers_and_resumes(
    paths: list[Path], views: SimCLRViews
) -> None:
    sources = {workers: source_of(paths, views, workers) for workers in (0, 1, 2)}
    for epoch in range(3):
        alone = trained(sources[0], epoch)
        want = taken(epoch_order(SEED, epoch, N))
        assert torch.cat([batch.index for batch in alone]).tolist() == want[: len(alone) * BATCH]
        assert all(batch.labels.tolist() == batch.index.tolist() for batch in alone)
        for source in sources.values():
            assert same_batches(trained(source, epoch), alone)
            assert same_batches(trained(source, epoch, done=2), alone[2:])
        for world in (2, 3):
            ranks = [trained(sources[0], epoch, rank, world) for rank in range(world)]
            for batch, parts in zip(alone, zip(*ranks, strict=True), strict=True):
                assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    for source in sources.values():
        source.close()


def test_views_are_those_of_the_image_taken(paths: list[Path], views: SimCLRViews) -> None:
    for batch in trained(source_of(paths, views), 1):
        (again,) = source_of(paths, views).batches([batch.index], 1, "views")
        assert torch.equal(batch.images, again.images)
        assert not set(batch.index.tolist()) & set(BAD)


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_leaves_rows_out_and_says_how_many(
    paths: list[Path], views: SimCLRViews, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    source = source_of(paths, views, workers)
    for world in (1, 2, 3):
        seen: list[int] = []
        for rank in range(world):
            for batch in EvaluationLoader(source, BATCH, rank, world, "both"):
                assert batch.images.shape == (len(batch.index), 3, 3, 12, 12)
                seen += batch.index.tolist()
        assert sorted(seen) == [number for number in range(N) if number not in BAD]
    source.close()
    assert capsys.readouterr().out.startswith("4 of 41 images cannot be read: they are left out")


def test_a_batch_may_be_empty(paths: list[Path], views: SimCLRViews) -> None:
    (batch,) = source_of(paths, views).batches([torch.tensor([3, 4])], 0, "both")
    assert batch.images.shape == (0, 3, 3, 12, 12)
    assert len(batch.labels) == len(batch.index) == 0


def test_all_files_bad_is_an_error(paths: list[Path], views: SimCLRViews) -> None:
    source = source_of([paths[i] for i in BAD], views)
    with pytest.raises(UserError, match=r"03\.jpg cannot be decoded"):
        list(source.batches([torch.tensor([0])], 0, "views", training=True))


# What is written down -----------------------------------------------------------------------------


def lines(folder: Path) -> list[str]:
    return (folder / LEFT_OUT).read_text().splitlines()


def notes(paths: list[Path], folder: Path, images: int = 1000) -> Unreadable:
    return Unreadable(paths[0].parent, images, folder / LEFT_OUT)


@forks
@pytest.mark.processes
def test_each_file_is_written_down_once_over_ranks_workers_and_resumes(
    paths: list[Path], views: SimCLRViews, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        source = source_of(paths, views, 2 * rank, notes(paths, tmp_path))
        for epoch in range(4):
            trained(source, epoch, rank, 2)
        source.close()
    list(source_of(paths, views, 0, notes(paths, tmp_path)).batches([torch.arange(N)], 0, "clean"))
    head, *rest = lines(tmp_path)
    assert head == "path,reason"
    assert sorted(line.split(",")[0] for line in rest) == [str(paths[i]) for i in BAD]
    assert f"{paths[4]},it is empty" in rest
    assert f"{paths[4]} is left out (it is empty)" in capsys.readouterr().out


def test_names_that_are_no_text_are_written_down(tmp_path: Path) -> None:
    odd = [tmp_path / 'a,"b"\n.jpg', Path(str(tmp_path) + "/\udcff.jpg")]
    for _ in range(2):
        note = notes(odd, tmp_path)
        for path in odd:
            note.add(path, "why")
    content = (tmp_path / LEFT_OUT).read_bytes()
    assert content.count(b"why") == 2
    assert b"\xff.jpg,why" in content


def test_more_than_one_in_a_hundred_ends_the_run(tmp_path: Path) -> None:
    """All that is known of, of other ranks too; of another data set nothing counts."""
    paths = [tmp_path / "set" / f"{i}.jpg" for i in range(4)]
    notes([tmp_path / "other" / "0.jpg"], tmp_path).add(tmp_path / "other" / "0.jpg", "why")
    first, second = (notes(paths, tmp_path, 200) for _ in range(2))
    first.add(paths[0], "why")
    first.add(paths[0], "why")
    second.add(paths[1], "why")
    with pytest.raises(UserError, match=r"3 of 200 images of .*set cannot be read, more than 1%"):
        first.add(paths[2], "why")
    assert len(lines(tmp_path)) == 5
