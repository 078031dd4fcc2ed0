"""NT-Xent's precision: float32 at least, at any temperature, whatever others allow."""

import math
from collections.abc import Iterator

import pytest
import torch
from equation_1 import dense_form, draw, error, ours, reference
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_pl import NTXentLoss, UserError


def test_float32_gradient_is_exact_where_the_dense_form_cancels() -> None:
    """At temperature 0.05 trained positives take all the mass, and 1 - softmax loses its digits."""
    generator = torch.Generator().manual_seed(0)
    z1, noise = torch.randn(2, 96, 128, generator=generator)
    z2 = z1 + 0.05 * noise
    expected = ours(z1.double(), z2.double(), 0.05)
    got, dense = ours(z1, z2, 0.05), dense_form(z1, z2, 0.05)
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
