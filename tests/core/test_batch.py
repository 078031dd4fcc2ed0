"""The contracts between rooms: what a batch, its views and its micro-batches hold."""

import pytest
import torch

from simclr_pl.core.batch import Batch, MicroBatches, Views
from simclr_pl.core.errors import UserError


def batch(count: int, *shape: int) -> Batch:
    """Images, labels and places that tell which image it is."""
    number = torch.arange(count)
    images = number.to(torch.uint8).view(-1, *[1] * len(shape)).expand(count, *shape)
    return Batch(images, number + 100, number + 1000, 7)


@pytest.mark.parametrize("sizes", [[10], [4, 3, 3], [1] * 10])
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 4, 4)])
def test_a_batch_splits_into_consecutive_parts(sizes: list[int], shape: tuple[int, ...]) -> None:
    """Of whole images, and of crops that a worker has cut."""
    whole = batch(10, *shape)
    parts = whole.split(sizes)
    assert [len(part.images) for part in parts] == sizes
    assert all(isinstance(part, Batch) and part.epoch == 7 for part in parts)
    for column in range(3):
        assert torch.cat([part[column] for part in parts]).equal(whole[column])


def test_a_part_is_no_copy() -> None:
    whole = batch(4, 1, 4, 4)
    pointers = [part.images.data_ptr() for part in whole.split([2, 2])]
    assert pointers[0] == whole.images.data_ptr()


def test_a_batch_does_not_split_into_less_or_more_than_it_holds() -> None:
    for sizes in ([3, 3], [5, 6]):
        with pytest.raises(RuntimeError, match="split_with_sizes"):
            batch(10, 1, 4, 4).split(sizes)


def test_micro_batches_are_read_as_views_but_for_the_pixels() -> None:
    """In the order of features: all parts' first views, then their second ones, ..."""

    def never(part: Batch) -> Views:
        raise AssertionError("labels need no views")

    whole = batch(10, 1, 4, 4)
    for views in (2, 3):
        parts = MicroBatches(whole.split([4, 3, 3]), never, [10], views)
        assert parts.labels.equal(whole.labels.repeat(views))
        assert parts.index.equal(whole.index.repeat(views))
        assert parts.epoch == 7
        with pytest.raises(UserError, match=r"reads pixels cannot be used with model\.micro_batch"):
            parts.views  # noqa: B018
