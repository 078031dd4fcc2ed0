"""Randomness as a pure function of (seed, epoch, sample, stream).

A generator has state: who draws how often, in which process, decides what comes next, and a resumed
run has to find that state again. Here nothing is drawn: each random number is *computed*, by
hashing what it belongs to. Sample 17's crop in epoch 3 is the same number in any batch, on any
rank, with any number of workers, before and after a resume, on a CPU and on a GPU to the bit (all
of it is integer arithmetic, and the closing conversion to float is exact).

The hash is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014): the state advances by the golden ratio times 2^64, and a finaliser mixes it.
"""

import os

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ORDER_STREAM = 0x6F72646572  # apart from the views' streams, which are small numbers
_LAYER_STREAM = 0x6C61796572

_AT_ONCE = 2**16
"""Samples whose keys are worked out at a time: as many as a processor's cache holds."""


def run_seed(seed: int | None) -> int:
    """`seed`, or where it is None the one of `seed_everything` (from the environment), or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed


def _signed(value: int) -> int:
    """The int64 that has the low 64 bits of `value`: torch has no shifts on uint64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64. Products wrap; `>>` is arithmetic, so the sign is masked."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _hash(seed: int, epoch: int, index: Tensor, stream: int | Tensor) -> Tensor:
    """A 64-bit key for each sample: int64, the shape of `index`."""
    key = torch.zeros((), dtype=torch.int64, device=index.device)
    for part in (seed, epoch, stream):
        salt = (part + 1) * _signed(_GOLDEN)
        key = _mix(key + (salt if isinstance(salt, Tensor) else _signed(salt)))
    return _mix(key + index * _signed(_GOLDEN))


def uniform(seed: int, epoch: int, index: Tensor, stream: int | Tensor, draws: int) -> Tensor:
    """Independent uniform numbers for each sample.

    Args:
        seed: the run's seed.
        epoch: the epoch, from 0.
        index: `int64 [B]`, each sample's place in its split.
        stream: what the numbers are for (the views use 0 and 1); one, or `int64 [B]`.
        draws: how many numbers a sample needs; a longer draw begins with the shorter one.

    Returns:
        `float32 [B, draws]` in [0, 1), multiples of 2^-24, the same bits on every device.
    """
    counter = torch.arange(1, draws + 1, device=index.device) * _signed(_GOLDEN)
    bits = _mix(_hash(seed, epoch, index, stream)[:, None] + counter)
    return ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24


def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """The order of `size` samples in an epoch: a permutation, `int64 [size]` on the CPU.

    Samples are sorted by their keys, and by their index where keys are equal. The result holds a
    key's high bits above the index until it is sorted, so that 10^8 samples take 0.9 GB.
    """
    bits = max(size - 1, 0).bit_length()
    order = torch.arange(size)
    for index in order.split(_AT_ONCE):
        index.bitwise_or_(_hash(seed, epoch, index, _ORDER_STREAM) >> bits << bits)
    order.numpy().sort()  # in place, unlike torch's; no two words are equal, so any sort will do
    tied = torch.zeros(size + 1, dtype=torch.bool)
    for start in range(0, size, _AT_ONCE):
        high = order[start : start + _AT_ONCE + 1] >> bits
        tied[start + 1 : start + len(high)] = high[1:] == high[:-1]
    order &= (1 << bits) - 1
    # Samples that agree in the high bits lie together, in the order of their index: the whole keys
    # put all of them right at once.
    places = (tied[1:] | tied[:-1]).nonzero()[:, 0]
    index = order[places]
    order[places] = index[_hash(seed, epoch, index, _ORDER_STREAM).argsort(stable=True)]
    return order


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for torch's generator in one step: a resume draws the same dropout masks."""
    return int(_hash(seed, step, torch.tensor([rank]), _LAYER_STREAM).item()) & (_MASK >> 1)
