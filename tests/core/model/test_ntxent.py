"""NT-Xent against equation 1 of the paper: value, gradient, statistics, memory, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from equation_1 import TEMPERATURES, dense_form, direct_statistics, draw, error, ours, reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simclr_pl import NTXentLoss, UserError

# Value and gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_loss_and_gradient_are_those_of_equation_1_for_any_block_size(temperature: float) -> None:
    z1, z2 = draw(7)
    expected = reference(z1, z2, temperature)
    for block_size in (1, 2, 3, 5, 7, 8, 14, 512):
        got = ours(z1, z2, temperature, block_size=block_size)
        for name, value in expected._asdict().items():
            assert error(getattr(got, name), value) < 1e-12, (name, block_size)


def test_two_images_are_enough() -> None:
    z1, z2 = draw(2)
    expected, got = reference(z1, z2, 0.5), ours(z1, z2, 0.5)
    assert all(error(a, b) < 1e-12 for a, b in zip(got, expected, strict=True))


def test_default_temperature_is_a_half() -> None:
    z1, z2 = draw(3)
    assert NTXentLoss()(z1, z2).equal(NTXentLoss(0.5)(z1, z2))


def test_loss_of_chance_is_the_log_of_the_number_of_candidates() -> None:
    """Where all projections coincide, the positive is one of 2N - 1."""
    z = torch.ones(5, 3, dtype=torch.float64)
    assert float(NTXentLoss(0.1)(z, z)) == pytest.approx(math.log(9), rel=1e-12)


def test_length_of_projections_does_not_matter() -> None:
    z1, z2 = draw(5)
    assert error(NTXentLoss(0.1)(z1 * 7, z2 * 0.3), NTXentLoss(0.1)(z1, z2)) < 1e-12


def test_gradient_follows_the_factor_that_backward_is_called_with() -> None:
    z1, z2 = draw(5)
    once = ours(z1, z2, 0.2)
    z1.requires_grad_()
    (1024 * NTXentLoss(0.2)(z1, z2)).backward()
    assert error(z1.grad, 1024 * once.grad1) < 1e-12


def test_gradient_is_the_finite_differences_one() -> None:
    z1, z2 = (z.requires_grad_() for z in draw(4))
    assert torch.autograd.gradcheck(NTXentLoss(0.3, 3), (z1, z2))


def test_projections_of_length_zero_give_finite_numbers() -> None:
    z1, z2 = draw(4)
    z1[1] = 0
    assert all(bool(torch.isfinite(x).all()) for x in ours(z1, z2, 0.1))


def test_no_grad_gives_the_same_loss() -> None:
    z1, z2 = (z.requires_grad_() for z in draw(6))
    expected = NTXentLoss(0.1, 4)(z1, z2)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loss = NTXentLoss(0.1, 4)(z1, z2)
        assert not loss.requires_grad
        assert loss.equal(expected)


# Statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 4, 9, 512])
def test_statistics_are_those_of_each_anchor(block_size: int) -> None:
    z1, z2 = draw(9)
    rank, log_sum = direct_statistics(z1, z2, 0.2)
    z1.requires_grad_()
    loss, anchors = NTXentLoss(0.2, block_size).with_statistics(z1, z2)
    assert loss.equal(NTXentLoss(0.2, block_size)(z1, z2))
    assert anchors.positive_rank.dtype == torch.int64
    assert anchors.positive_rank.equal(rank)
    assert len(rank.unique()) > 2  # the draw has hits and misses
    assert error(anchors.log_sum, log_sum) < 1e-12
    assert not anchors.log_sum.requires_grad


def hits(z1: Tensor, z2: Tensor, temperature: float, block_size: int = 512) -> list[bool]:
    """Of first views, then of second ones."""
    _, anchors = NTXentLoss(temperature, block_size).with_statistics(z1, z2)
    return (anchors.positive_rank == 0).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_collapsed_projections_are_no_hits(temperature: float, dtype: torch.dtype) -> None:
    """Of the same cosine, a positive's product and a negative's are summed in different orders."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        images, width = 2 + seed % 9, (16, 128, 100, 2048)[seed % 4]
        z = torch.randn(width, generator=generator, dtype=dtype).expand(images, -1)
        for block_size in (512, 3):
            assert not any(hits(z, z * 1.7, temperature, block_size)), (seed, block_size)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_positive_that_is_a_little_nearer_is_a_hit(
    temperature: float, dtype: torch.dtype, gap: float
) -> None:
    """The margin of a tie is rounding's."""
    # Cosines: 1 - gap of each pair, and the square of that, or less, of everything else.
    near = torch.eye(5, dtype=torch.float64) * math.sqrt(2 * gap) + torch.ones(5, 5).double()
    near = F.normalize(near, dim=1)
    cosine = near @ near.T
    far = float((1 - cosine.fill_diagonal_(0).max()) * 0.9)
    assert 0 < far < 2 * gap
    z = near.to(dtype)
    assert all(hits(z, z, temperature))


@pytest.mark.parametrize("block_size", [2, 512])
def test_what_is_no_number_is_no_hit(block_size: int) -> None:
    z1, z2 = (5 * torch.eye(6) for _ in range(2))
    assert all(hits(z1, z2, 0.5, block_size))
    z2[4, 1] = torch.nan  # a similarity to it is none, for everybody
    assert not any(hits(z1, z2, 0.5, block_size))
    z1[:], z2[:] = torch.nan, torch.nan
    _, anchors = NTXentLoss(0.5, block_size).with_statistics(z1, z2)
    assert anchors.positive_rank.tolist() == [10] * 12  # as if all negatives were nearer


# Memory ------------------------------------------------------------------------------------------


class _Largest(TorchDispatchMode):
    """Records the largest storage, in numbers, that any operation has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.numbers = max(self.numbers, size)
        return out


def test_memory_grows_with_the_batch_and_never_with_its_square() -> None:
    images, width, block_size = 256, 16, 32
    z1, z2 = (z.requires_grad_() for z in draw(images, width))
    kept = []
    with (
        _Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.untyped_storage().nbytes() // x.element_size()) or x,
            lambda x: x,
        ),
    ):
        NTXentLoss(0.5, block_size)(z1, z2).backward()
    linear = 2 * images * width
    assert block_size**2 < linear < (2 * images) ** 2 / 30
    assert largest.numbers == linear
    assert sum(kept) <= 6 * linear

    with _Largest() as dense:
        dense_form(z1.detach(), z2.detach(), 0.5)
    assert dense.numbers == (2 * images) ** 2  # what the recorder is for


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature is {temperature}, but must be above 0"):
        NTXentLoss(temperature)


@pytest.mark.parametrize("block_size", [0, -3])
def test_a_block_without_rows_is_refused(block_size: int) -> None:
    with pytest.raises(UserError, match=f"block_size is {block_size}, but must be at least 1"):
        NTXentLoss(block_size=block_size)


@pytest.mark.parametrize(
    ("first", "second"), [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((4, 3, 1), (4, 3, 1))]
)
def test_other_shapes_than_two_equal_matrices_are_refused(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"must be two \[B, P\] tensors, not") as refusal:
        NTXentLoss()(torch.zeros(first), torch.zeros(second))
    assert str([*second]) in str(refusal.value)


@pytest.mark.parametrize("counts", [[3], [2, 2], []])
def test_counts_that_are_not_these_images_are_refused(counts: list[int]) -> None:
    z1, z2 = draw(4)
    with pytest.raises(ValueError, match="4 images on rank 0 of 1 are not those of"):
        NTXentLoss().with_statistics(z1, z2, counts)


@pytest.mark.parametrize("images", [0, 1])
def test_an_image_without_negatives_is_refused(images: int) -> None:
    with pytest.raises(UserError, match="at least 2 images"):
        NTXentLoss()(torch.ones(images, 3), torch.ones(images, 3))


def test_the_printed_module_tells_its_temperature_and_has_no_parameters() -> None:
    loss: nn.Module = NTXentLoss(0.25, 64)
    assert repr(loss) == "NTXentLoss(temperature=0.25, block_size=64)"
    assert not loss.state_dict()
