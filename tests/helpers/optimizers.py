"""A recipe of an optimizer, and a network of weights, biases and norms for it."""

import torch
from torch import nn

from simclr_pl.core.model.optim import OptimizerSettings, Scaling
from simclr_pl.core.model.projector import build_projector


def recipe(
    name: str = "sgd",
    learning_rate: float = 0.3,
    scaling: Scaling = "linear",
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    warmup_epochs: float = 10,
) -> OptimizerSettings:
    return OptimizerSettings(name, learning_rate, scaling, weight_decay, momentum, warmup_epochs)


def network() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    return nn.Sequential(encoder, build_projector(4, 2, None, 3)).double()


def slope(modules: nn.Module, seed: int) -> None:
    """Gives each parameter a gradient."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in modules.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).double()


class Table(nn.Module):
    """A module of one's own, with a parameter that isn't to decay."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.matrix = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 4))

    def no_weight_decay(self) -> set[str]:
        return {"table"}
