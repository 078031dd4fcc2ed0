"""NT-Xent as equation 1 of the paper has it, term by term, and rows to compute it of."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_pl import NTXentLoss

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


# Precision ---------------------------------------------------------------------------------------


def dense_form(z1: Tensor, z2: Tensor, temperature: float) -> Reference:
    """The usual form: cross-entropy over a row of similarities, the anchor itself masked out."""
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    loss = F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z1)))
    return Reference(loss.detach(), *torch.autograd.grad(loss, [z1, z2]))


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
