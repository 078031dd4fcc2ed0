"""Batch norm over all ranks: torch's on the concatenated batch; what its conversion keeps."""

import pytest
import torch
import torch.distributed as dist
from ranks import ranks
from torch import Tensor, nn

from simclr_pl.core.model.batch_norm import GlobalBatchNorm, globalise_batch_norm

CPU = torch.device("cpu")

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
