"""Products of float32 numbers in float32, where TF32 or bfloat16 have been allowed for the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_FULL = ("ieee", "none")
"""`none`: as ever, since nobody has said anything."""


@contextmanager
def full_precision() -> Iterator[None]:
    """A context in which matrix products of float32 numbers are exact to float32's rounding.

    What `torch.set_float32_matmul_precision` and `torch.backends` allow holds again behind it. TF32
    keeps 10 bits: at temperature 0.1 a similarity's exponential would be off by half a per cent.
    In code that is being compiled it does nothing: there are no products yet.
    """
    if torch.compiler.is_compiling():
        yield
        return
    mkldnn: Any = torch.backends.mkldnn
    backends = torch.backends.cuda.matmul, mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    if all(precision in _FULL for precision in before):
        yield
        return
    try:
        allowed = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was said through `torch.backends` alone
        allowed = "highest"
    # Through the older function, which sets both: torch refuses products where they contradict.
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
