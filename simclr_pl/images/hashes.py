"""Hashes of names and places, by which images are drawn and kept."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def hashes(keys: Iterable[bytes], seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash of each key with a seed: `uint64 [N]`, the same on every machine (BLAKE2b).

    Args:
        keys: what images are known by: names, or places in digits.
        seed: hashed before each key.
    """
    start = hashlib.blake2b(f"{seed}/".encode(), digest_size=8)
    digests = []
    for key in keys:
        each = start.copy()
        each.update(key)
        digests.append(each.digest())
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
