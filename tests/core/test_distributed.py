"""Ranks: the helper that starts them, shards, gathers, and batch norm over all of them."""

import os
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, ranks
from torch import Tensor, nn

from simclr_pl.core.distributed import (
    gather_rows,
    gather_with_gradient,
    rank_and_world,
    row_counts,
    shard,
    sum_over_ranks,
)
from simclr_pl.core.model.batch_norm import GlobalBatchNorm, globalise_batch_norm

CPU = torch.device("cpu")

# The helper --------------------------------------------------------------------------------------


def _who() -> tuple[int, int, int]:
    return (*rank_and_world(), torch.get_num_threads())


def _raises_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the reason")
    dist.barrier()


def _dies_on_rank_1() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def _leaves_on_rank_1() -> None:
    if dist.get_rank() == 1:
        os._exit(0)


def _hangs_on_rank_1() -> None:
    if dist.get_rank() == 1:
        time.sleep(1000)


@pytest.mark.ddp
def test_every_rank_answers_in_order_with_one_thread() -> None:
    assert ranks(3, _who) == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_raises_on_rank_1, r"rank 1 raised:\n(.*\n)*.*KeyError: 'the reason'"),
        (_dies_on_rank_1, "rank 1 died with exit code 3"),
        (_leaves_on_rank_1, "rank 1 ended without a result"),
        (_hangs_on_rank_1, "rank 1 hangs: no end after 1 s"),
    ],
)
def test_a_rank_that_fails_fails_the_test_soon(function: Callable[[], None], said: str) -> None:
    ranks(2, _who)  # the imports are paid for
    start = time.monotonic()
    with pytest.raises(RankError, match=said):
        ranks(2, function, timeout=1)
    assert time.monotonic() - start < 20


# Rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 64, 1000])
def test_shards_cover_all_rows_once_and_differ_by_one_at_most(size: int, world: int) -> None:
    rows = torch.arange(size)
    shards = [rows[shard(size, rank, world)] for rank in range(world)]
    assert torch.cat(shards).equal(rows)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_one_process_needs_no_group() -> None:
    x = torch.randn(3, 2)
    assert rank_and_world() == (0, 1)
    assert row_counts(3, CPU) == [3]
    assert gather_rows(x, [3]).equal(x)
    assert sum_over_ranks(x.clone()).equal(x)


def _gather(parts: list[Tensor]) -> tuple[list[int], Tensor, Tensor, Tensor]:
    mine = parts[dist.get_rank()]
    counts = row_counts(len(mine), CPU)
    whole = gather_rows(mine.T.contiguous().T, counts)  # strides of another layout don't matter
    labels = gather_rows(torch.full((len(mine),), dist.get_rank()), counts)
    return counts, whole, labels, sum_over_ranks(mine.sum(0))


@pytest.mark.ddp
@pytest.mark.parametrize("sizes", [[4, 4], [1, 6, 3], [0, 2]])
def test_gathered_rows_are_those_of_all_ranks_in_order(sizes: list[int]) -> None:
    everything = torch.randn(sum(sizes), 3, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    for counts, whole, labels, total in ranks(len(sizes), _gather, everything.split(sizes)):
        assert counts == sizes
        assert whole.equal(everything)
        assert labels.equal(owner)
        torch.testing.assert_close(total, everything.sum(0), rtol=1e-12, atol=1e-12)


# Batch norm --------------------------------------------------------------------------------------

SHAPES = {2: [(5, 4, 3, 2), (3, 4, 3, 2)], 3: [(1, 4), (4, 4), (2, 4)]}

OPTIONS = [
    {},
    {"momentum": None},
    {"eps": 0.1, "momentum": 0.3},
    {"affine": False},
    {"track_running_stats": False},
]


def _norm(options: dict, dims: int) -> nn.Module:
    """torch's batch norm, with weights that aren't trivial."""
    norm = (nn.BatchNorm2d if dims == 4 else nn.BatchNorm1d)(4, **options).double()
    if norm.affine:
        norm.weight.data = torch.tensor([0.5, 2.0, -1.0, 1.5], dtype=torch.float64)
        norm.bias.data = torch.tensor([1.0, -2.0, 0.0, 0.3], dtype=torch.float64)
    return norm


def _two_steps(norm: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Outputs and gradients of loss = sum(weight * output): two training steps, then eval mode."""
    told = {}
    for step, (images, weight) in enumerate(batches):
        x = images.clone().requires_grad_()
        norm.train(step < 2)
        norm.zero_grad()
        out = norm(x)
        (weight * out).sum().backward()
        told |= {f"{step} output": out.detach(), f"{step} input": x.grad}
        told |= {f"{step} sum {n}": p.grad.clone() for n, p in norm.named_parameters()}
    return told | {f"buffer {n}": b.clone() for n, b in norm.named_buffers()}


def _norms_on_ranks(everything: list[tuple[dict, list]]) -> list[dict[str, Tensor]]:
    results = []
    for options, batches in everything:
        mine = [tuple(part[dist.get_rank()] for part in batch) for batch in batches]
        norm = globalise_batch_norm(_norm(options, mine[0][0].dim()), CPU)
        assert type(norm) is GlobalBatchNorm
        if not options.get("track_running_stats", True):
            mine = mine[:2]  # in eval mode torch takes the statistics of whoever asks
        results.append(_two_steps(norm, mine))
    return results


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 3])
def test_global_batch_norm_is_torchs_on_the_concatenated_batch(world: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(mean: float) -> list[Tensor]:
        return [
            torch.randn(shape, generator=generator, dtype=torch.float64) + mean
            for shape in SHAPES[world]
        ]

    everything = [(options, [(draw(5.0), draw(0.0)) for _ in range(3)]) for options in OPTIONS]
    told = ranks(world, _norms_on_ranks, everything)
    for case, (options, batches) in enumerate(everything):
        whole = [(torch.cat(x), torch.cat(weight)) for x, weight in batches]
        if not options.get("track_running_stats", True):
            whole = whole[:2]
        expected = _two_steps(_norm(options, len(SHAPES[world][0])), whole)
        parts = [result[case] for result in told]
        for name, value in expected.items():
            if "buffer" in name:
                got = [part[name] for part in parts]
            elif "sum" in name:
                got = [sum(part[name] for part in parts)]
            else:
                got = [torch.cat([part[name] for part in parts])]
            for each in got:
                scale = float(value.abs().max())
                assert each.dtype == value.dtype
                assert float((each - value).abs().max()) <= 1e-12 * max(scale, 1.0), (options, name)


def _default_norm(parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    norm = globalise_batch_norm(nn.BatchNorm2d(3), CPU)
    out = norm(parts[dist.get_rank()])
    return out.detach(), norm.running_mean, norm.running_var


@pytest.mark.ddp
def test_global_batch_norm_of_bfloat16_computes_in_float32_as_torch_does() -> None:
    x = (torch.randn(30, 3, 9, 7, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    norm = nn.BatchNorm2d(3)
    expected = norm(x)
    parts = ranks(2, _default_norm, x.split([13, 17]))
    out = torch.cat([part[0] for part in parts])
    for _, mean, var in parts:
        torch.testing.assert_close(mean, norm.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var, norm.running_var, rtol=1e-5, atol=1e-6)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.ddp
def test_global_batch_norm_keeps_its_precision_far_from_zero() -> None:
    x = torch.randn(30, 3, 9, 7, generator=torch.Generator().manual_seed(0)) + 1000
    expected = nn.BatchNorm2d(3).double()(x.double()).float()
    parts = ranks(2, _default_norm, x.split([13, 17]))
    out = torch.cat([part[0] for part in parts])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)  # E[x^2] - E[x]^2: 1e-1


def _network() -> nn.Module:
    projector = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3))
    projector[1].bias.requires_grad_(False)
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
            "projector": projector,
        }
    )


def test_conversion_keeps_names_and_the_very_parameters_and_buffers() -> None:
    network = _network().eval()
    network["encoder"][1].train()
    before = network.state_dict(keep_vars=True)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    converted = globalise_batch_norm(network, CPU)
    after = converted.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert {n for n, p in converted.named_parameters() if not p.requires_grad} == frozen
    assert frozen == {"projector.1.bias"}
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [GlobalBatchNorm] * 2
    assert [norm.training for norm in norms] == [True, False]
    assert globalise_batch_norm(converted, CPU)["projector"][1] is norms[1]  # nothing to do twice


def test_on_cuda_torchs_own_takes_its_place() -> None:
    converted = globalise_batch_norm(_network(), torch.device("cuda"))
    assert isinstance(converted["projector"][1], nn.SyncBatchNorm)
    assert not converted["projector"][1].bias.requires_grad


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_conversion_keeps_the_activation_that_timms_batch_norms_bring(device: str) -> None:
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(4).eval()
    x = torch.randn(2, 4, 3, 3)
    converted = globalise_batch_norm(nn.Sequential(norm), torch.device(device)).eval()
    assert norm(x).min() == 0
    assert converted(x).equal(norm(x))


def test_one_process_gets_torchs_batch_norm() -> None:
    x = torch.randn(6, 4, 3, 2, dtype=torch.float64)
    batches = [(x, x.sin()), (x + 1, x.cos()), (x - 1, x)]
    for options in OPTIONS:
        expected = _two_steps(_norm(options, 4), batches)
        got = _two_steps(globalise_batch_norm(_norm(options, 4), CPU), batches)
        assert all(got[name].equal(value) for name, value in expected.items())


def test_batch_norm_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="at least 2 dimensions, not 1"):
        GlobalBatchNorm(4)(torch.zeros(4))


def test_on_cuda_a_second_conversion_changes_nothing() -> None:
    """Each fit, validate and test asks for it; timm's batch norms carry their activation."""
    import timm

    network = timm.create_model("mobilenetv3_small_050", num_classes=0)
    once = globalise_batch_norm(network, torch.device("cuda"))
    kinds = [type(module) for module in once.modules()]
    again = globalise_batch_norm(once, torch.device("cuda"))
    assert [type(module) for module in again.modules()] == kinds
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in again.modules())


# Gathering with gradients -------------------------------------------------------------------------


def _gradient(images: list[int], counts: list[int] | None) -> Tensor:
    """Of the squares of all pairwise products, a loss in which each row meets all others."""
    rank = dist.get_rank() if dist.is_initialized() else None
    rows = torch.randn(2 * sum(images), 3, generator=torch.Generator().manual_seed(0)).double()
    first, second = rows.unflatten(0, (2, -1))
    mine = [part if rank is None else part.split(images)[rank] for part in (first, second)]
    own = torch.cat(mine).requires_grad_()
    z = torch.cat([gather_with_gradient(view, counts) for view in own.chunk(2)])
    (z @ z.T).square().mean().backward()
    assert own.grad is not None
    return own.grad


@pytest.mark.ddp
@pytest.mark.parametrize("images", [[2, 5], [3, 0, 4]])
def test_gathered_rows_have_the_gradient_of_the_loss_of_all_ranks(images: list[int]) -> None:
    """Ranks work out the same loss, whose gradient DDP divides by their number."""
    want = _gradient(images, None)
    for counts in (None, images) if 0 not in images else (None,):
        told = ranks(len(images), _gradient, images, counts)
        views = zip(*(part.chunk(2) for part in told), strict=True)
        got = torch.cat([torch.cat(view) for view in views]) / len(images)
        assert torch.allclose(got, want, rtol=1e-12, atol=0)
