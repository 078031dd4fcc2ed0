"""Random pixels, what is in a data set's arrays, and what was said of it."""

from typing import Any

import numpy as np
import pytest
import torch

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages

Arrays = dict[str, np.ndarray[Any, Any]]


def array(source: object) -> ArrayImages:
    assert isinstance(source, ArrayImages)
    return source


def counts(labels: torch.Tensor, classes: int) -> list[int]:
    return torch.bincount(labels[labels != UNLABELLED], minlength=classes).tolist()


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def sentence(caught: pytest.ExceptionInfo[UserError]) -> str:
    """What was said, if it is one sentence."""
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert ":)" not in said
    assert "\\n" not in said
    return said
