"""Randomness as a pure function: against SplitMix64 in whole numbers, and in plain statistics."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simclr_pl.core import randomness
from simclr_pl.core.randomness import epoch_order, run_seed, uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
MANY = 40_000


def splitmix64(state: int) -> int:
    """The generator's finaliser in Python's whole numbers, cut to 64 bits after each product."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def sample_key(seed: int, epoch: int, index: int, stream: int) -> int:
    key = 0
    for part in (seed, epoch, stream):
        key = splitmix64(key + (part + 1) * GOLDEN)
    return splitmix64(key + index * GOLDEN)


def uniform_reference(seed: int, epoch: int, index: int, stream: int, draws: int) -> list[float]:
    key = sample_key(seed, epoch, index, stream)
    return [(splitmix64(key + k * GOLDEN) >> 40) / 2**24 for k in range(1, draws + 1)]


def chi_square_z(cells: Tensor, bins: int) -> float:
    """How many standard deviations the chi-square of equally likely cells is from its mean."""
    counts = torch.bincount(cells.flatten(), minlength=bins).double()
    expected = cells.numel() / bins
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    return (chi2 - (bins - 1)) / (2 * (bins - 1)) ** 0.5


def one(seed: int = 0, epoch: int = 0, stream: int = 0, draw: int = 0, offset: int = 0) -> Tensor:
    """One number for each of many samples: `[MANY]`."""
    return uniform(seed, epoch, torch.arange(MANY) + offset, stream, draw + 1)[:, draw]


def test_reference_is_the_published_splitmix64() -> None:
    """The test vector that implementations quote: the first outputs of seed 1234567."""
    outputs = [splitmix64(1234567 + k * GOLDEN) for k in range(1, 6)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1, 2**63, 2**64 - 1, -1])
@pytest.mark.parametrize("epoch", [0, 7, 999])
@pytest.mark.parametrize("stream", [0, 1])
def test_uniform_has_the_bits_of_the_reference(seed: int, epoch: int, stream: int) -> None:
    indices = [0, 1, 2, 1000, 2**31, 2**62]
    got = uniform(seed, epoch, torch.tensor(indices), stream, 5)
    want = [uniform_reference(seed, epoch, i, stream, 5) for i in indices]
    assert got.tolist() == want


def test_uniform_is_float32_multiples_of_two_to_the_minus_24_below_one() -> None:
    u = uniform(3, 1, torch.arange(10_000), 0, 10)
    assert u.shape == (10_000, 10)
    assert u.dtype == torch.float32
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    scaled = u.double() * 2**24
    assert torch.equal(scaled, scaled.round())
    # Fewer bits than 24 would show as repeats: by chance there are three among 10,000.
    assert scaled[:, 0].unique().numel() > 9_980


def test_longer_draw_begins_with_the_shorter() -> None:
    index = torch.arange(50)
    assert torch.equal(uniform(5, 2, index, 1, 32)[:, :7], uniform(5, 2, index, 1, 7))


def test_numbers_of_a_sample_do_not_depend_on_its_batch() -> None:
    everything = uniform(9, 4, torch.arange(100), 0, 6)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(9, 4, shuffled, 0, 6), everything[shuffled])
    alone = torch.cat([uniform(9, 4, torch.tensor([i]), 0, 6) for i in range(100)])
    assert torch.equal(alone, everything)
    twice = torch.tensor([5, 5, 17])
    assert torch.equal(uniform(9, 4, twice, 0, 6), everything[twice])


def test_torchs_generator_is_neither_read_nor_moved() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = uniform(0, 0, torch.arange(8), 0, 4), epoch_order(0, 0, 8)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        second = uniform(0, 0, torch.arange(8), 0, 4), epoch_order(0, 0, 8)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("draw", [0, 1, 31])
@pytest.mark.parametrize(
    ("seed", "epoch", "stream"), [(0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), (42, 800, 1)]
)
def test_numbers_are_uniform(seed: int, epoch: int, stream: int, draw: int) -> None:
    u = one(seed, epoch, stream, draw)
    assert abs(chi_square_z((u * 256).long(), 256)) < 4.5
    # So are the lowest bits, which a coarse histogram never sees.
    assert abs(chi_square_z((u.double() * 2**24).long() % 256, 256)) < 4.5


NEIGHBOURS: dict[str, dict[str, int]] = {
    "next sample": {"offset": 1},
    "sample 64 further": {"offset": 64},
    "next epoch": {"epoch": 1},
    "other view": {"stream": 1},
    "next seed": {"seed": 1},
    "next draw": {"draw": 1},
}


@pytest.mark.parametrize("other", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_neighbouring_numbers_are_independent(other: dict[str, int]) -> None:
    u, v = one(), one(**other)
    # All 16 x 16 cells of the pair are equally likely, and the correlation is that of chance.
    assert abs(chi_square_z((u * 16).long() * 16 + (v * 16).long(), 256)) < 4.5
    correlation = float(torch.corrcoef(torch.stack([u, v]))[0, 1])
    assert abs(correlation) < 4.5 / MANY**0.5


def test_seed_epoch_and_stream_have_roles_of_their_own() -> None:
    """A hash that merely added the parts would give the same numbers in another order of them."""
    index = torch.arange(100)
    rows = [uniform(*parts[:2], index, parts[2], 1) for parts in itertools.permutations((1, 2, 3))]
    rows += [uniform(*parts[:2], index, parts[2], 1) for parts in [(0, 0, 6), (6, 0, 0), (0, 6, 0)]]
    for first, second in itertools.combinations(rows, 2):
        assert int((first == second).sum()) == 0


def test_epoch_order_follows_the_sorted_keys_of_the_reference() -> None:
    stream = int.from_bytes(b"order", "big")
    signed = [sample_key(3, 2, i, stream) for i in range(50)]
    signed = [key - 2**64 if key >= 2**63 else key for key in signed]
    assert epoch_order(3, 2, 50).tolist() == sorted(range(50), key=signed.__getitem__)


@pytest.mark.parametrize("high_bits", [64, 12, 3])
def test_epoch_order_is_that_of_the_keys_whole_and_then_of_the_index(
    high_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that agree in their high bits, or in all bits, are frequent here."""

    def few(seed: int, epoch: int, index: Tensor, stream: int) -> Tensor:
        key = hash_of(seed, epoch, index, stream)
        if high_bits == 64:
            return key
        low = key & 1 if epoch % 2 else key & MASK >> 1 >> high_bits
        return key >> 64 - high_bits << 64 - high_bits | low

    hash_of = randomness._hash
    monkeypatch.setattr(randomness, "_hash", few)
    for case in range(40):
        size = case if case < 12 else case * case
        monkeypatch.setattr(randomness, "_AT_ONCE", (2**16, 1, 7, 64)[case % 4])
        keys = few(case // 7, case, torch.arange(size), randomness._ORDER_STREAM).tolist()
        want = sorted(range(size), key=lambda i: (keys[i], i))
        order = epoch_order(case // 7, case, size)
        assert order.dtype == torch.int64
        assert order.tolist() == want


def test_epoch_order_differs_by_epoch_and_by_seed_and_repeats() -> None:
    order = epoch_order(0, 0, 200)
    assert torch.equal(order, epoch_order(0, 0, 200))
    # Two random orders agree in one place on average.
    assert int((order == epoch_order(0, 1, 200)).sum()) < 10
    assert int((order == epoch_order(1, 0, 200)).sum()) < 10
    assert int((epoch_order(0, 1, 200) == epoch_order(1, 0, 200)).sum()) < 10


def test_every_place_in_the_order_is_equally_likely() -> None:
    orders = torch.stack([epoch_order(0, epoch, 10) for epoch in range(2000)])
    for place in range(10):
        assert abs(chi_square_z(orders[:, place], 10)) < 4.5
    pairs = orders[:, 0] * 10 + orders[:, 1]
    assert pairs.unique().numel() == 90


def test_run_seed_prefers_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_seed(None) == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert run_seed(None) == 17
    assert run_seed(5) == 5
    assert run_seed(0) == 0


def test_run_seed_is_the_one_of_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import seed_everything

    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")  # so that what follows is undone
    with torch.random.fork_rng():
        seed_everything(23, verbose=False)
    assert run_seed(None) == 23


def test_the_module_stays_short() -> None:
    """A promise of the project: the whole idea on two screens of 50 lines."""
    assert len(Path(randomness.__file__).read_text().splitlines()) < 100


@pytest.mark.gpu
def test_numbers_have_the_same_bits_on_a_gpu() -> None:
    index = torch.arange(5000) * 977
    there = uniform(1, 2, index.cuda(), 1, 32)
    assert there.is_cuda
    assert torch.equal(there.cpu(), uniform(1, 2, index, 1, 32))
