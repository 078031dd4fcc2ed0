"""How far two states are from each other: checkpoints, or parts of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a nested state, with where they were found."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from tensors(value, f"{name}/{key}")


def far(a: Any, b: Any) -> float:
    """The largest relative difference of a tensor of two states; their counters must be equal."""
    one, other = dict(tensors(a)), dict(tensors(b))
    assert one.keys() == other.keys()
    differences = [0.0]
    for name, value in one.items():
        if value.is_floating_point():
            away = (value.double() - other[name].double()).norm()
            differences.append(float(away / value.double().norm().clamp(min=1e-12)))
        else:
            assert torch.equal(value, other[name]), name
    return max(differences)
