"""Small tensors that stay on their device."""

import functools
from typing import Any

import torch
from torch import Tensor


@functools.lru_cache(maxsize=128)
def constant(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of fixed numbers, not to be written to.

    It is put on its device once: an accelerator works behind the host's back, and each copy from
    ordinary memory makes the host wait until it has caught up.

    Args:
        values: a number, or a tuple of them, or of tuples.
        dtype: of the tensor.
        device: where it is wanted.
    """
    # Outside of inference mode, where it may first be asked for: such a tensor is of little use.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)
