"""NT-Xent against equation 1 of the paper, written down literally, on one rank and on several."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simclr_pl import NTXentLoss, UserError

TEMPERATURES = [0.02, 0.05, 0.1, 0.5, 1.0]


def equation_1(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The mean over all 2N anchors of -log(exp(s_ip) / sum_{j != i} exp(s_ij)), term by term."""
    images, z = len(z1), [*z1, *z2]
    total = z1.new_zeros(())
    for i, anchor in enumerate(z):
        p = (i + images) % (2 * images)
        terms = {}
        for j, other in enumerate(z):
            if j != i:
                cosine = (anchor * other).sum() / (anchor.norm() * other.norm())
                terms[j] = torch.exp(cosine / temperature)
        total = total - torch.log(terms[p] / sum(terms.values()))
    return total / (2 * images)


class Reference(NamedTuple):
    loss: Tensor
    grad1: Tensor
    grad2: Tensor


def reference(z1: Tensor, z2: Tensor, temperature: float) -> Reference:
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    loss = equation_1(z1, z2, temperature)
    return Reference(loss.detach(), *torch.autograd.grad(loss, [z1, z2]))


def ours(z1: Tensor, z2: Tensor, temperature: float, **options: Any) -> Reference:
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    loss = NTXentLoss(temperature, **options)(z1, z2)
    return Reference(loss.detach(), *torch.autograd.grad(loss, [z1, z2]))


def draw(images: int, width: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Projections of different lengths, whose positives are a little nearer than chance."""
    generator = torch.Generator().manual_seed(images)
    z1, noise = torch.randn(2, images, width, generator=generator, dtype=torch.float64)
    length = torch.rand(images, 1, generator=generator, dtype=torch.float64) * 3 + 0.1
    return (z1 * length).to(dtype), (0.5 * z1 + noise).to(dtype)


def error(got: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest number."""
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


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


# Precision ---------------------------------------------------------------------------------------


def _dense(z1: Tensor, z2: Tensor, temperature: float) -> Reference:
    """The usual form: cross-entropy over a row of similarities, the anchor itself masked out."""
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    loss = F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z1)))
    return Reference(loss.detach(), *torch.autograd.grad(loss, [z1, z2]))


def test_float32_gradient_is_exact_where_the_dense_form_cancels() -> None:
    """At temperature 0.05 trained positives take all the mass, and 1 - softmax loses its digits."""
    generator = torch.Generator().manual_seed(0)
    z1, noise = torch.randn(2, 96, 128, generator=generator)
    z2 = z1 + 0.05 * noise
    expected = ours(z1.double(), z2.double(), 0.05)
    got, dense = ours(z1, z2, 0.05), _dense(z1, z2, 0.05)
    assert got.grad1.dtype == torch.float32
    for name in ("grad1", "grad2"):
        exact = getattr(expected, name)
        assert error(getattr(got, name), exact) < 3e-6
        assert error(getattr(dense, name), exact) > 100 * error(getattr(got, name), exact)
    assert error(got.loss, expected.loss) < 3e-6


@pytest.mark.parametrize("inverse", [60, 69, 75, 300])
def test_float32_holds_at_very_low_temperatures(inverse: int) -> None:
    """exp(1 / temperature) leaves float32's range at 1/88."""
    z1, z2 = draw(8)
    expected = reference(z1.float().double(), z2.float().double(), 1 / inverse)
    got = ours(z1.float(), z2.float(), 1 / inverse)
    assert got.loss.dtype == torch.float32
    assert all(error(a, b) < 3e-5 for a, b in zip(got, expected, strict=True))


def finite_or_refused(temperature: float) -> bool:
    try:
        loss = NTXentLoss(temperature)
    except UserError:
        return True
    return math.isfinite(float(loss(*draw(8))))


@pytest.mark.parametrize("temperature", [1e-3, 1e-5])
def test_no_temperature_gives_a_loss_that_is_no_number(temperature: float) -> None:
    """float64 ends at exp(709)."""
    assert finite_or_refused(temperature)


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_computes_in_float32_at_least(
    given: torch.dtype, computed: torch.dtype, autocast: bool
) -> None:
    z1, z2 = draw(24, 32, given)
    expected = ours(z1.to(computed), z2.to(computed), 0.05, block_size=16)
    z1.requires_grad_()
    z2.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, anchors = NTXentLoss(0.05, 16).with_statistics(z1, z2)
        loss.backward()
    assert loss.dtype == anchors.log_sum.dtype == computed
    assert loss.detach().equal(expected.loss)
    for z, grad in ((z1, expected.grad1), (z2, expected.grad2)):
        assert z.grad.dtype == given
        assert z.grad.equal(grad.to(given))


class _Precisions(TorchDispatchMode):
    """Records what products of float32 may be rounded to, on a GPU and a CPU, at each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "mm" in func.overloadpacket.__name__:
            self.seen.append(precisions())
        return func(*args, **(kwargs or {}))


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def _as_before() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("allowed", ["high", "medium"])
@pytest.mark.parametrize("block_size", [8, 512])
def test_products_are_float32s_whatever_others_allow(allowed: str, block_size: int) -> None:
    z1, z2 = draw(64, 128, torch.float32)
    expected = ours(z1, z2, 0.05, block_size=block_size)
    torch.set_float32_matmul_precision(allowed)
    before = precisions()
    with _Precisions() as products:
        got = ours(z1, z2, 0.05, block_size=block_size)
    assert set(products.seen) == {("ieee", "ieee")}
    assert len(products.seen) > 2  # backward's too
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))
    assert (torch.get_float32_matmul_precision(), precisions()) == (allowed, before)


@pytest.mark.usefixtures("_as_before")
def test_a_precision_comes_back_whoever_allowed_it_and_however_the_loss_ends() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # without a word to the CPU's library
    before = precisions()
    z1, z2 = draw(4, dtype=torch.float32)
    ours(z1, z2, 0.5)
    with pytest.raises(UserError, match="at least 2 images"):
        NTXentLoss()(z1[:1], z2[:1])
    assert precisions() == before


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("allowed", ["highest", "high"])
def test_the_loss_can_be_compiled(allowed: str) -> None:
    torch.set_float32_matmul_precision(allowed)
    z1, z2 = (z.requires_grad_() for z in draw(8, dtype=torch.float32))
    compiled = torch.compile(NTXentLoss(0.2), backend="aot_eager", fullgraph=True)(z1, z2)
    compiled.backward()
    expected = ours(z1.detach(), z2.detach(), 0.2)
    assert error(compiled.detach(), expected.loss) < 1e-6
    assert error(z1.grad, expected.grad1) < 1e-5
    assert torch.get_float32_matmul_precision() == allowed
    torch.compiler.reset()


# Statistics --------------------------------------------------------------------------------------


def direct_statistics(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The positive's rank among the negatives, and their log-sum-exp, anchor by anchor."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    rank, log_sum = [], []
    for i in range(len(z)):
        p = (i + len(z1)) % len(z)
        negatives = [float(z[i] @ z[j]) for j in range(len(z)) if j not in {i, p}]
        rank.append(sum(s > float(z[i] @ z[p]) for s in negatives))
        log_sum.append(math.log(sum(math.exp(s / temperature) for s in negatives)))
    return torch.tensor(rank), torch.tensor(log_sum, dtype=z.dtype)


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
        _dense(z1.detach(), z2.detach(), 0.5)
    assert dense.numbers == (2 * images) ** 2  # what the recorder is for


# Several ranks -----------------------------------------------------------------------------------

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


@pytest.mark.parametrize("counts", [[3], [2, 2], []])
def test_counts_that_are_not_these_images_are_refused(counts: list[int]) -> None:
    z1, z2 = draw(4)
    with pytest.raises(ValueError, match="4 images on rank 0 of 1 are not those of"):
        NTXentLoss().with_statistics(z1, z2, counts)


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


@pytest.mark.parametrize("images", [0, 1])
def test_an_image_without_negatives_is_refused(images: int) -> None:
    with pytest.raises(UserError, match="at least 2 images"):
        NTXentLoss()(torch.ones(images, 3), torch.ones(images, 3))


def test_the_printed_module_tells_its_temperature_and_has_no_parameters() -> None:
    loss: nn.Module = NTXentLoss(0.25, 64)
    assert repr(loss) == "NTXentLoss(temperature=0.25, block_size=64)"
    assert not loss.state_dict()
