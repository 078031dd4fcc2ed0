"""Random pixels, what is in a data set's arrays, and what was said of it."""

from typing import Any

import numpy as np
import pytest
import torch

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED, Batch
from simclr_pl.core.data.sources import ArrayImages

Arrays = dict[str, np.ndarray[Any, Any]]


def array(source: object) -> ArrayImages:
    assert isinstance(source, ArrayImages)
    return source


def counts(labels: torch.Tensor, classes: int) -> list[int]:
    return torch.bincount(labels[labels != UNLABELLED], minlength=classes).tolist()


def sentence(caught: pytest.ExceptionInfo[UserError]) -> str:
    """What was said, if it is one sentence."""
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert ":)" not in said
    assert "\\n" not in said
    return said


def same_batches(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.index, b.index)
        and a.epoch == b.epoch
        for a, b in zip(first, second, strict=True)
    )
