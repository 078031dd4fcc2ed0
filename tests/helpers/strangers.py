"""An objective that reads groups: no image of an anchor's own group is among its negatives."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def strangers(features: Tensor, projections: Tensor, batch: Any) -> Tensor:
    """NT-Xent on this rank, with negatives of other groups alone."""
    z = F.normalize(projections)
    groups, index = batch.groups, batch.index
    alike = (groups[:, None] == groups) & (groups >= 0) | (index[:, None] == index)
    similarity = z @ z.T / 0.5
    positive = similarity.diagonal(len(z) // 2).repeat(2)
    others = similarity.masked_fill(alike, -torch.inf).logsumexp(1)
    return (torch.logaddexp(others, positive) - positive).mean()
