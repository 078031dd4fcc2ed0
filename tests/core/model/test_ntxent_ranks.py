"""NT-Xent on several ranks: the loss and gradient of the concatenated batch."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from equation_1 import TEMPERATURES, Reference, direct_statistics, draw, equation_1, error, ours
from ranks import ranks
from torch import Tensor

from simclr_pl import NTXentLoss, UserError

SPLITS = [[10], [6, 6], [5, 7], [0, 4], [1, 6, 3], [3, 3, 3], [1, 2, 3, 4], [3, 3, 3, 3]]


class OnRank(NamedTuple):
    """What a rank knows after a step of a linear map shared by both views."""

    loss: Tensor
    grad1: Tensor
    grad2: Tensor
    weight_grad: Tensor
    positive_rank: Tensor
    log_sum: Tensor


def on_rank(x1: Tensor, x2: Tensor, sizes: list[int], temperature: float, block: int) -> OnRank:
    """Forward and backward on this rank's rows; the parameter's gradient averaged as DDP does."""
    rank = dist.get_rank()
    x1, x2 = x1.split(sizes)[rank], x2.split(sizes)[rank]
    weight = shared_weight()
    z1, z2 = x1 @ weight.T, x2 @ weight.T
    z1.retain_grad()
    z2.retain_grad()
    known = sizes if block == 5 else None
    with pytest.MonkeyPatch.context() as patch:
        if known:  # nobody is asked
            patch.delattr("simclr_pl.core.model.ntxent.row_counts")
        loss, anchors = NTXentLoss(temperature, block).with_statistics(z1, z2, known)
    loss.backward()
    dist.all_reduce(weight.grad)
    weight.grad /= len(sizes)
    return OnRank(loss.detach(), z1.grad, z2.grad, weight.grad, *anchors)


def shared_weight() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=generator, dtype=torch.float64).requires_grad_()


def all_cases_on_rank(x1: Tensor, x2: Tensor, sizes: list[int]) -> list[OnRank]:
    return [
        on_rank(x1, x2, sizes, temperature, block)
        for temperature in TEMPERATURES
        for block in (2, 5, 512)
    ]


@pytest.mark.ddp
@pytest.mark.parametrize("sizes", SPLITS, ids=lambda sizes: "+".join(map(str, sizes)))
def test_ranks_together_have_the_loss_and_gradient_of_the_concatenated_batch(
    sizes: list[int],
) -> None:
    world, images = len(sizes), sum(sizes)
    x1, x2 = draw(images)
    everyone = ranks(world, all_cases_on_rank, x1, x2, sizes)
    cases = iter(zip(*everyone, strict=True))
    for temperature in TEMPERATURES:
        weight = shared_weight()
        z1, z2 = x1 @ weight.T, x2 @ weight.T
        loss = equation_1(z1, z2, temperature)
        grad1, grad2, weight_grad = torch.autograd.grad(loss, [z1, z2, weight])
        rank, log_sum = direct_statistics(z1.detach(), z2.detach(), temperature)
        for _block in range(3):
            told = next(cases)
            mean = torch.stack([one.loss for one in told]).mean()
            assert error(mean, loss.detach()) < 1e-12
            # DDP's mean over ranks undoes the factor of the world size.
            assert error(torch.cat([one.grad1 for one in told]), world * grad1) < 1e-12
            assert error(torch.cat([one.grad2 for one in told]), world * grad2) < 1e-12
            for one in told:
                assert error(one.weight_grad, weight_grad) < 1e-12
            assert in_order(told, "positive_rank", sizes).equal(rank)
            assert error(in_order(told, "log_sum", sizes), log_sum) < 1e-12


def in_order(told: tuple[OnRank, ...], name: str, sizes: list[int]) -> Tensor:
    """All ranks' anchors as one process has them: all first views, then all second ones."""
    views = [getattr(one, name).split(max(size, 1)) for one, size in zip(told, sizes, strict=True)]
    return torch.cat([view[0] for view in views] + [view[1] for view in views if len(view) > 1])


@pytest.mark.ddp
def test_float32_on_ranks_is_as_precise_as_on_one() -> None:
    generator = torch.Generator().manual_seed(0)
    z1, noise = torch.randn(2, 64, 128, generator=generator)
    z2 = z1 + 0.05 * noise
    told = ranks(2, strongly_correlated_on_rank, z1, z2, [40, 24])
    expected = ours(z1.double(), z2.double(), 0.05)
    assert error(torch.cat([one.grad1 for one in told]), 2 * expected.grad1) < 3e-6


def strongly_correlated_on_rank(z1: Tensor, z2: Tensor, sizes: list[int]) -> Reference:
    rank = dist.get_rank()
    return ours(z1.split(sizes)[rank], z2.split(sizes)[rank], 0.05)


@pytest.mark.ddp
def test_one_image_on_all_ranks_together_is_refused_by_each() -> None:
    assert ranks(2, refusal, *draw(1), [1, 0]) == [True, True]


def refusal(z1: Tensor, z2: Tensor, sizes: list[int]) -> bool:
    rank = dist.get_rank()
    try:
        NTXentLoss()(z1.split(sizes)[rank], z2.split(sizes)[rank])
    except UserError as error:
        return "at least 2 images" in str(error)
    return False
