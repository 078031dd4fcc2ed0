"""The contracts between rooms: what a batch, its views and its micro-batches hold."""

import pytest
import torch

from simclr_pl.batch import Batch, MicroBatches, Views


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


def test_both_views_are_the_first_ones_and_then_the_second_ones() -> None:
    first, second = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    both = Views(first, second, torch.arange(3), torch.arange(3)).both
    assert both[:3].equal(first)
    assert both[3:].equal(second)
    assert len(both) == 6


def test_labels_of_micro_batches_are_those_of_the_batch() -> None:
    def never(part: Batch) -> Views:
        raise AssertionError("labels need no views")

    whole = batch(10, 1, 4, 4)
    assert MicroBatches(whole.split([4, 3, 3]), never).labels.equal(whole.labels)
