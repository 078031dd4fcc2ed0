"""Hashes of names and places, by which images are drawn and kept."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def hashes(keys: Iterable[bytes], seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash of each key with a seed: `uint64 [N]`, the same on every machine (BLAKE2b).

    Args:
        keys: what images are known by: names, or places in digits.
        seed: hashed before each key.
    """
    start = hashlib.blake2b(f"{seed}/".encode(), digest_size=8)
    digests = bytearray()
    for key in keys:
        each = start.copy()
        each.update(key)
        digests += each.digest()
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def by_hash(keys: Sequence[bytes], seed: int, purpose: str = "") -> Tensor:
    """Places of keys in the order of their hashes, `int64 [N]`; of equal ones, of the keys.

    Args:
        keys: likewise; of two that are alike the first one comes first.
        seed: hashed before each key.
        purpose: hashed between the two: orders for several purposes have nothing to do with each
            other.
    """
    start = purpose.encode()
    hashed = hashes((start + key for key in keys), seed)
    order = hashed.argsort(kind="stable")
    ranked = hashed[order]
    if (ranked[1:] == ranked[:-1]).any():  # one pair in 2^64, or keys that are alike
        order = np.array(sorted(order.tolist(), key=lambda place: (hashed[place], keys[place])))
    return torch.from_numpy(order)
