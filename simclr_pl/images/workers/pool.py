"""Worker processes that all splits of a data set share, and passes over images that go on at once.

A pass that is waited for has the workers to itself. Where all its items are with workers, some of
the pass that comes next are made ahead, so that an epoch begins without a wait.
"""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simclr_pl.core.errors import UserError
from simclr_pl.images.workers.processes import end_workers, loader_of, start
from simclr_pl.lightning_internals import running_iterator, send_more

Work = Callable[..., Any]
"""A function of an item, and of how it is wanted; it is called in the workers."""


class Member(Protocol):
    """Something whose work a pool does."""

    def work(self) -> Work:
        """The function that workers call; with spawned workers it is pickled."""


class Failed(NamedTuple):
    """An item's error, which waits until the item is asked for."""

    error: UserError


class Pass:
    """Items that are worked on in order, and results that have come.

    Args:
        member: number of the member of the pool whose work it is.
        items: tensors (workers get them as arrays), or anything that can be pickled.
        how: is given to the work with each item.
        after: gives the pass that comes next. It is called when workers have all items.
        most_ahead: items of the next pass that are made ahead, at most.
    """

    def __init__(
        self,
        member: int,
        items: Sequence[Any],
        *how: Any,
        after: "Callable[[], Pass] | None" = None,
        most_ahead: int = 0,
    ) -> None:
        self.member, self.items, self.how = member, items, how
        self.after, self.most_ahead = after, most_ahead
        self.sent = 0
        """How many items workers have been given."""
        self.results: deque[Any] = deque()
        self.is_over = False

    def job(self) -> tuple[int, Any, tuple[Any, ...]]:
        """The next item, for a worker."""
        item = self.items[self.sent]
        self.sent += 1
        return self.member, item.numpy() if isinstance(item, Tensor) else item, self.how

    def take(self, result: Any) -> None:
        """Keeps a result, unless nobody waits for it any more."""
        if not self.is_over:
            self.results.append(result)

    def end(self) -> None:
        """Gives up what has not been asked for."""
        self.is_over, self.items, self.after = True, (), None
        self.results.clear()

    def begins(self, other: "Pass") -> bool:
        """Whether the results of this pass, as far as it has been sent, are the other's first."""
        return (
            (self.member, self.how, len(self.items)) == (other.member, other.how, len(other.items))
            and all(torch.equal(self.items[n], other.items[n]) for n in range(self.sent))
        )  # fmt: skip


class _Jobs:
    """What workers get next; a DataLoader takes it for its sampler."""

    def __init__(self) -> None:
        self.waiting: Pass | None = None
        """The pass that is waited for; `None`: workers get nothing."""
        self.ahead: Pass | None = None
        """The pass that comes next, where it is known."""
        self.most_ahead = 0
        """Items of it that are made ahead."""
        self.sent: deque[Pass] = deque()
        """The passes of items that workers have, in order."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if (passing := self._turn()) is None:
            raise StopIteration  # of now: it is asked again
        self.sent.append(passing)
        return passing.job()

    def _turn(self) -> Pass | None:
        """The pass whose item comes next."""
        waiting = self.waiting
        if waiting is None or waiting.sent < len(waiting.items):
            return waiting
        if waiting.after is not None and waiting.most_ahead:
            self.drop()
            self.ahead, self.most_ahead = waiting.after(), waiting.most_ahead
            waiting.after = None
        ahead = self.ahead
        is_wanted = ahead is not None and ahead.sent < min(self.most_ahead, len(ahead.items))
        return ahead if is_wanted else None

    def drop(self) -> None:
        """Gives up what was made ahead."""
        if self.ahead is not None:
            self.ahead.end()
        self.ahead = None

    def taken(self, passing: Pass) -> Pass:
        """The pass to wait for: the one that was begun ahead, where it is the same."""
        ahead = self.ahead
        if ahead is None or ahead.how != passing.how or ahead.member != passing.member:
            return passing
        if not ahead.begins(passing):
            self.drop()
            return passing
        self.ahead = None
        ahead.after, ahead.most_ahead = passing.after, passing.most_ahead
        return ahead


class _Results(Dataset[Any]):
    """What a member's work makes of each job."""

    def __init__(self, works: Sequence[Work | None]) -> None:
        self.works = works

    def __getitem__(self, job: tuple[int, Any, tuple[Any, ...]]) -> Any:
        member, item, how = job
        work = self.works[member]
        assert work is not None
        try:
            return work(item, *how)
        except UserError as error:
            return Failed(error)


class Pool:
    """Worker processes, which start when a first result is asked for.

    They know the members that have joined before their start. The work of another member ends
    them, and starts new ones.

    Args:
        workers: processes; with 0 this process does the work.
        pinned: whether tensors are copied to pinned memory, for a GPU.
    """

    def __init__(self, workers: int, *, pinned: bool = False) -> None:
        self.workers, self.pinned = workers, pinned
        # Not the members themselves: in a cycle, workers would outlive what they work for.
        self._members: list[weakref.ref[Member]] = []
        self._open: set[int] = set()
        self._results = _Results([])
        self._jobs = _Jobs()
        self._loader: DataLoader[Any] | None = None

    def join(self, member: Member) -> int:
        """Adds a member; returns its number."""
        self._members.append(weakref.ref(member))
        return len(self._members) - 1

    def results(self, passing: Pass) -> Generator[Any, None, None]:
        """Yields the result of each item of a pass.

        Raises:
            UserError: as an item's work, or workers that cannot go on.
        """
        self._open.add(passing.member)
        passing = self._jobs.taken(passing)
        try:
            for _ in range(len(passing.items)):
                if self.workers:
                    result = self._next(passing)
                else:
                    self._know(passing.member)
                    result = self._results[passing.job()]
                if isinstance(result, Failed):
                    raise result.error
                yield result
        finally:
            passing.end()

    def close(self, member: int) -> None:
        """Ends the workers, once no other member needs them; they start again when asked."""
        self._open.discard(member)
        if self._jobs.ahead is not None and self._jobs.ahead.member == member:
            self._jobs.drop()
        if not self._open:
            self._end()

    def _next(self, passing: Pass) -> Any:
        if not self._know(passing.member):
            self._restart()
        self._jobs.waiting = passing
        if self._loader is None:
            self._loader = loader_of(self._results, self._jobs, self.workers, pinned=self.pinned)
            start(self._loader)
        send_more(running_iterator(self._loader))
        while not passing.results:
            self._receive()
        return passing.results.popleft()

    def _receive(self) -> None:
        """Gives the next result to its pass."""
        assert self._loader is not None
        try:
            result = next(running_iterator(self._loader))
        except BaseException:
            self._end()  # nobody knows which results would come
            raise
        self._jobs.sent.popleft().take(result)

    def _know(self, member: int) -> bool:
        """Whether the workers know a member; where there are none, they will."""
        works = self._results.works
        if member < len(works) and works[member] is not None:
            return True
        there = self._loader is not None
        if not there:
            alive = [reference() for reference in self._members]
            self._results = _Results([None if each is None else each.work() for each in alive])
        return not there

    def _restart(self) -> None:
        """Ends the workers when they have done what they were given."""
        self._jobs.waiting = None
        while self._jobs.sent:
            self._receive()
        self._end()
        self._know(0)

    def _end(self) -> None:
        loader, self._loader, self._results = self._loader, None, _Results([])
        for passing in self._jobs.sent:
            passing.sent -= 1  # other workers will get these items again
        self._jobs.sent.clear()
        if loader is not None:
            end_workers(loader)


_pools: weakref.WeakValueDictionary[tuple[int, int], Pool] = weakref.WeakValueDictionary()


def shared_pool(owner: Any, workers: int) -> Pool:
    """The pool of so many workers that is shared by all who name the same owner.

    Args:
        owner: an object that every member keeps, and thereby as long as the pool.
        workers: processes.
    """
    pool = _pools.get((id(owner), workers))
    if pool is None:
        pool = _pools[id(owner), workers] = Pool(workers, pinned=torch.cuda.is_available())
    return pool


class _Alone:
    """The one member of a pool that is there for one pass."""

    def __init__(self, function: Work) -> None:
        self.function = function

    def work(self) -> Work:
        return self.function


def results_of(function: Work, items: Sequence[Any], workers: int) -> Generator[Any, None, None]:
    """Yields what a function returns of each item, in order, and then ends the workers.

    Args:
        function: is called in the workers; with spawned ones it has to be pickled.
        items: its arguments.
        workers: processes; with 0 this process does the work.
    """
    pool, member = Pool(workers), _Alone(function)
    number = pool.join(member)
    try:
        yield from pool.results(Pass(number, items))
    finally:
        pool.close(number)
