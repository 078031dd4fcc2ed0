"""Names in one buffer."""

import numpy as np
import pytest

from simclr_pl.images.shards import index
from simclr_pl.images.shards.index import Names


def test_names_are_those_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_MANY", 3)
    given = [b"a/1.png", b"", b"b.png", b"\xff", b"c", b"", b"dd.png"]
    names = Names.of(given)
    assert list(names) == given == [names[place] for place in range(7)]
    assert names[1:6:2] == given[1:6:2]
    assert list(names.at(np.array([6, 0, 1, 3]))) == [given[i] for i in (6, 0, 1, 3)]
    with pytest.raises(IndexError):
        names[7]


def test_ten_million_names_take_their_letters_and_eight_bytes_each() -> None:
    ends = np.arange(1, 10**7 + 1, dtype=np.int64) * 13
    names = Names(np.zeros(13 * 10**7, np.uint8), ends)
    assert names.letters.nbytes + names.ends.nbytes == 10**7 * 21
    assert names[10**7 - 1] == bytes(13)
    some = names.at(np.arange(10**7 - 5, 10**7))
    assert list(some) == [bytes(13)] * 5
