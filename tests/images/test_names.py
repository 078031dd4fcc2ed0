"""Names and paths in one buffer."""

import pickle
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from simclr_pl.images import hashes, names
from simclr_pl.images.hashes import by_hash
from simclr_pl.images.names import Names, Paths, order_of

GIVEN = [b"a/1.png", b"", b"b.png", b"\xff", b"c", b"", b"dd.png"]


def test_names_are_those_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_MANY", 3)
    found = Names.of(iter(GIVEN))
    assert list(found) == GIVEN == [found[place] for place in range(7)]
    assert found[1:6:2] == GIVEN[1:6:2]
    with pytest.raises(IndexError):
        found[7]
    assert list(Names.of([])) == []


def test_some_names_share_the_buffer_of_all() -> None:
    found = Names.of(GIVEN)
    some = found.at(torch.tensor([6, 0, 1, 3]))
    assert list(some) == [GIVEN[i] for i in (6, 0, 1, 3)] == [some[place] for place in range(4)]
    assert list(some.at(np.array([3, 0]))) == [GIVEN[3], GIVEN[6]]
    assert some[1:3] == [GIVEN[0], GIVEN[1]]
    assert np.shares_memory(some.letters, found.letters)


def test_names_go_to_spawned_workers_as_shared_memory() -> None:
    letters = Names.of([b"x" * 10**6]).at(np.array([0]))
    sent = ForkingPickler.dumps(letters)
    assert len(sent) < 10**4
    assert list(pickle.loads(sent)) == [b"x" * 10**6]


@pytest.mark.processes
def test_shared_memory_is_there_until_the_workers_are(tmp_path: Path) -> None:
    """A process that is being spawned gets the memory's file when all is pickled."""
    context = torch.multiprocessing.get_context("spawn")
    found = Names.of([b"x" * 10**5, b"a", b"b"])
    halves = [found.at(np.array([0, 2])), found.at(np.array([1])), Names.of([b"y" * 10**5])]
    worker = context.Process(target=_write, args=(halves, tmp_path / "names"))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert (tmp_path / "names").read_bytes() == b"x" * 10**5 + b"b" + b"a" + b"y" * 10**5


def _write(parts: list[Names], file: Path) -> None:
    file.write_bytes(b"".join(name for part in parts for name in part))


def test_paths_are_those_of_a_list() -> None:
    given = [Path("a/ä.png"), Path("/b.png"), Path("c")]
    found = Paths.of(given)
    assert list(found) == given == found[:] == [found[place] for place in range(3)]
    assert list(found.at(torch.tensor([2, 0]))) == [given[2], given[0]]
    below = Paths(Path("x/y"), found.names)
    assert list(below) == [Path("x/y/a/ä.png"), Path("/b.png"), Path("x/y/c")]


def test_ten_million_names_take_their_letters_and_eight_bytes_each() -> None:
    ends = np.arange(1, 10**7 + 1, dtype=np.int64) * 13
    found = Names(np.zeros(13 * 10**7, np.uint8), ends)
    assert found.letters.nbytes + found.ends.nbytes == 10**7 * 21
    assert found[10**7 - 1] == bytes(13)
    assert list(found.at(np.arange(10**7 - 5, 10**7))) == [bytes(13)] * 5


def test_of_equal_hashes_the_key_decides_then_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [b"c", b"b", b"a", b"b"]
    monkeypatch.setattr(hashes, "hashes", lambda _, seed: np.array([7, 7, 9, 7], np.uint64))
    assert by_hash(keys, 0).tolist() == [1, 3, 0, 2]


def key_of(name: bytes) -> tuple[bytes, bytes]:
    first, slash, _ = name.partition(b"/")
    return first if slash else b"", name.replace(b"/", b"\0")


def test_paths_are_sorted_by_folders_and_then_by_files() -> None:
    draw = random.Random(0)
    parts = [b"a", b"ab", b"a.b", b"b", b"\xff", b"\x01", b"long-name-of-a-folder", b"0123456789ab"]
    names = [b"/".join(draw.choices(parts, k=draw.randint(1, 6))) for _ in range(3000)]
    names += [b"/" + name for name in names[:100]] + names[:50]
    order = order_of(Names.of(names))
    wanted = sorted(range(len(names)), key=lambda place: key_of(names[place]))
    assert order.tolist() == wanted
    some = np.arange(len(names))[::-7]
    chosen = Names.of(names).at(some)
    assert [*chosen.at(order_of(chosen))] == sorted((names[at] for at in some), key=key_of)


def test_few_names_have_an_order_too() -> None:
    assert order_of(Names.of([])).tolist() == []
    assert order_of(Names.of([b"b/a"])).tolist() == [0]
    assert order_of(Names.of([b"b/a", b"c", b"b/a"])).tolist() == [1, 0, 2]
