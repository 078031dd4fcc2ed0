"""An objective of one's own: decoupled contrastive learning (Yeh et al. 2022, equation 6)."""

import torch
from torch import nn
from torch.nn import functional as F

from simclr_pl.core.distributed import gather_with_gradient


class Decoupled(nn.Module):
    def __init__(self, temperature: float = 0.5):
        super().__init__()
        self.temperature = temperature

    def forward(self, features, projections, batch):
        z = torch.cat([gather_with_gradient(z, batch.counts) for z in projections.chunk(2)])
        similarity = F.normalize(z) @ F.normalize(z).T / self.temperature
        positive = similarity.diagonal(len(z) // 2).repeat(2)
        itself = torch.eye(len(z) // 2, dtype=torch.bool, device=z.device).repeat(2, 2)
        return (similarity.masked_fill(itself, -torch.inf).logsumexp(1) - positive).mean()
