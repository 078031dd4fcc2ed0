"""One pool of workers: passes that go on at once, batches made ahead, members that come later."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from photographs import fill
from torch import Tensor

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.data.loaders import TrainLoader
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.images.workers.pool import Pass, Pool, results_of

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]

SECONDS = 20.0
"""That a worker gets for a few lines, on a busy machine."""


class Squares:
    """A member whose workers square numbers, and note each in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def work(self) -> "Squares":
        return self

    def __call__(self, item: int, *how: int) -> tuple[int, ...]:
        with self.file.open("a") as file:
            file.write(f"{item}\n")
        if item == 13:
            raise UserError("13 is bad")
        if item == 17:
            raise ZeroDivisionError
        return (item * item, *how)

    def seen(self, count: int = 0) -> list[int]:
        """The items that have been worked on, once there are so many."""
        end = time.monotonic() + SECONDS
        while True:
            lines = self.file.read_text().split() if self.file.exists() else []
            if len(lines) >= count:
                return sorted(map(int, lines))
            assert time.monotonic() < end, f"{len(lines)} of {count} in {SECONDS} s"
            time.sleep(0.02)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    for member in range(len(pool._members)):
        pool.close(member)
    assert children() == []


@pytest.fixture
def squares(tmp_path: Path) -> Squares:
    return Squares(tmp_path / "squares")


def children() -> list[int]:
    return [process.pid or 0 for process in multiprocessing.active_children()]


def values(results: Iterator[Any]) -> list[int]:
    return [square for square, *_ in results]


def plan(*items: int) -> list[Tensor]:
    return [torch.tensor(item) for item in items]


def test_passes_of_several_members_go_on_at_once_by_the_same_workers(
    pool: Pool, squares: Squares, tmp_path: Path
) -> None:
    others = Squares(tmp_path / "others")
    first, second = pool.join(squares), pool.join(others)
    one = pool.results(Pass(first, range(9), 1))
    assert next(one) == (0, 1)
    workers = children()
    two = pool.results(Pass(second, range(20, 25), 2, 3))
    assert [next(one), next(two), next(two), next(one)] == [
        (1, 1),
        (400, 2, 3),
        (441, 2, 3),
        (4, 1),
    ]
    three = pool.results(Pass(first, range(4)))
    assert values(three) == [0, 1, 4, 9]
    two.close()  # what workers still have of it is nobody's
    assert values(one) == [9, 16, 25, 36, 49, 64]
    assert children() == workers
    assert len(workers) == 2
    pool.close(first)
    assert children() == workers  # of the other member
    pool.close(second)
    assert children() == []
    assert values(pool.results(Pass(first, range(3)))) == [0, 1, 4]


def test_a_member_that_comes_later_loses_nothing_of_a_pass(
    pool: Pool, squares: Squares, tmp_path: Path
) -> None:
    one = pool.results(Pass(pool.join(squares), range(12)))
    assert next(one) == (0,)
    before = set(children())
    late = Squares(tmp_path / "late")
    assert values(pool.results(Pass(pool.join(late), range(3)))) == [0, 1, 4]
    assert before.isdisjoint(children())
    assert values(one) == [n * n for n in range(1, 12)]
    assert squares.seen() == list(range(12))  # each was worked on once


def following(pool: Pool, items: list[Tensor], epoch: int = 1) -> Callable[[], Pass]:
    return lambda: Pass(0, items, epoch)


def test_some_of_the_next_pass_is_made_ahead(pool: Pool, squares: Squares) -> None:
    pool.join(squares)
    after = following(pool, plan(5, 6, 7, 8))
    one = pool.results(Pass(0, plan(0, 1, 2), 0, after=after, most_ahead=2))
    assert values(one) == [0, 1, 4]
    assert squares.seen(5) == [0, 1, 2, 5, 6]
    between = pool.results(Pass(0, plan(3), 9))
    assert values(between) == [9]
    assert squares.seen() == [0, 1, 2, 3, 5, 6]  # and no more of it, whoever waits
    two = pool.results(Pass(0, plan(5, 6, 7, 8), 1))
    assert list(two) == [(25, 1), (36, 1), (49, 1), (64, 1)]
    assert squares.seen() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("items", "epoch"), [((5, 7, 8), 1), ((5, 6), 1), ((5, 6, 7), 2)], ids=["order", "less", "how"]
)
def test_what_was_made_ahead_of_another_pass_is_given_up(
    pool: Pool, squares: Squares, items: tuple[int, ...], epoch: int
) -> None:
    pool.join(squares)
    after = following(pool, plan(5, 6, 7))
    list(pool.results(Pass(0, plan(0), 0, after=after, most_ahead=2)))
    squares.seen(3)
    results = pool.results(Pass(0, plan(*items), epoch))
    assert list(results) == [(item * item, epoch) for item in items]


def test_an_error_made_ahead_waits_until_its_item_is_asked_for(
    pool: Pool, squares: Squares
) -> None:
    pool.join(squares)
    after = following(pool, plan(5, 13))
    list(pool.results(Pass(0, plan(0), 0, after=after, most_ahead=2)))
    squares.seen(3)
    assert values(pool.results(Pass(0, plan(1, 2), 9))) == [1, 4]
    results = pool.results(Pass(0, plan(5, 13), 1))
    assert next(results) == (25, 1)
    with pytest.raises(UserError) as error:
        next(results)
    assert str(error.value) == "13 is bad"


def test_behind_an_error_of_the_code_other_passes_are_what_they_were(
    pool: Pool, squares: Squares
) -> None:
    member = pool.join(squares)
    one = pool.results(Pass(member, range(10)))
    assert next(one) == (0,)
    with pytest.raises(ZeroDivisionError):
        list(pool.results(Pass(member, [20, 17, 21])))
    assert values(one) == [n * n for n in range(1, 10)]


def test_behind_the_death_of_a_worker_as_well(pool: Pool, squares: Squares) -> None:
    member = pool.join(squares)
    one = pool.results(Pass(member, range(10)))
    assert next(one) == (0,)
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(UserError, match="SIGKILL"):
        list(pool.results(Pass(member, range(20, 40))))
    assert values(one) == [n * n for n in range(1, 10)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_of_a_function(workers: int) -> None:
    assert list(results_of(str, [3, 1, 2], workers)) == ["3", "1", "2"]
    assert children() == []


def test_splits_share_workers_and_an_epoch_begins_with_batches_that_are_there(
    tmp_path: Path,
) -> None:
    """The images of the next epoch's first batches can be taken away."""
    paths = fill(tmp_path / "images", 24)
    images = ImageFiles(paths, torch.zeros(24, dtype=torch.int64))
    views = SimCLRViews(20, seed=7)
    train, val = (images.select(torch.arange(24)[part]) for part in (slice(16), slice(16, 24)))
    want = [
        list(TrainLoader(train.prepared(views, views, 0), 4, 0, 1, 7, lambda at=at: at))
        for at in range(2)
    ]
    train, val = train.prepared(views, views, 1), val.prepared(views, views, 1)
    epoch = 0
    loader = TrainLoader(train, 4, 0, 1, 7, lambda: epoch, epochs=2)
    got = list(loader)
    assert len(list(val.batches([torch.arange(8)], 0, "both"))) == 1
    assert len(children()) == 1
    first = set(want[1][0].index.tolist())
    for n, path in enumerate(paths[:16]):
        if n in first:
            path.unlink()
    epoch = 1
    got += list(loader)
    assert all(torch.equal(a.images, b.images) for a, b in zip(got, want[0] + want[1], strict=True))
    train.close()
    assert len(children()) == 1
    val.close()
    assert children() == []
