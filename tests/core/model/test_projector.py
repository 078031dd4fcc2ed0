"""The projection head: layers, widths, no biases, the last norm's bias held at zero."""

import pytest
import torch
from torch import nn

from simclr_pl import UserError
from simclr_pl.core.model.projector import build_projector


@pytest.mark.parametrize(
    ("layers", "hidden", "shapes"),
    [
        (1, None, [(5, 12)]),
        (1, 7, [(5, 12)]),
        (2, None, [(12, 12), (5, 12)]),
        (2, 7, [(7, 12), (5, 7)]),
        (3, None, [(12, 12), (12, 12), (5, 12)]),
        (3, 7, [(7, 12), (7, 7), (5, 7)]),
    ],
)
def test_layers_and_widths(layers: int, hidden: int | None, shapes: list[tuple[int, int]]) -> None:
    projector = build_projector(12, layers, hidden, 5)
    linear = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in projector.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [tuple(m.weight.shape) for m in linear] == shapes
    assert all(m.bias is None for m in linear)  # batch norm would take it out again
    assert [m.num_features for m in norms] == [rows for rows, _ in shapes]
    assert projector(torch.randn(4, 12)).shape == (4, 5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_head_is_linear_then_norm_with_relu_between(layers: int) -> None:
    """Against the definition: g(h) = BN(W2 relu(BN(W1 h))), and no ReLU at the end."""
    torch.manual_seed(0)
    projector = build_projector(6, layers, 8, 4).double()
    h = x = torch.randn(10, 6, dtype=torch.float64)
    weights = [m.weight for m in projector.modules() if isinstance(m, nn.Linear)]
    for place, weight in enumerate(weights):
        x = x @ weight.T
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        x = x.relu() if place < layers - 1 else x
    torch.testing.assert_close(projector(h), x, rtol=1e-12, atol=1e-12)
    assert float(x.detach().min()) < 0


def test_the_last_bias_stays_zero_and_the_others_learn() -> None:
    projector = build_projector(6, 3, 8, 4)
    frozen = {name for name, p in projector.named_parameters() if not p.requires_grad}
    assert frozen == {"2.1.bias"}
    optimizer = torch.optim.SGD(projector.parameters(), lr=1.0)
    projector(torch.randn(5, 6)).sigmoid().sum().backward()
    optimizer.step()
    assert not projector[2][1].bias.any()
    assert projector[2][1].weight.ne(1).any()
    assert projector[1][1].bias.any()


@pytest.mark.parametrize("layers", [0, -1])
def test_a_head_without_layers_is_refused(layers: int) -> None:
    with pytest.raises(UserError, match=f"model.projector_layers is {layers}, but must be"):
        build_projector(12, layers, None, 5)


@pytest.mark.parametrize(("hidden", "width"), [(0, 5), (7, 0), (-2, 5), (None, -1)])
def test_widths_below_one_are_refused(hidden: int | None, width: int) -> None:
    with pytest.raises(UserError, match=r"model.proj.* must be at least 1"):
        build_projector(12, 2, hidden, width)
