"""The votes of nearest neighbours as the paper has them."""

import math

import torch.nn.functional as F
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED


def hits_literally(
    queries: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, k: int, t: float = 0.07
) -> int:
    """How many queries are right, by Wu et al. 2018, section 3.4, a query at a time."""
    right = 0
    for query, label in zip(queries.double(), labels.tolist(), strict=True):
        similarity = F.cosine_similarity(query[None], bank.double()).tolist()
        pairs = zip(similarity, bank_labels.tolist(), strict=True)
        votes: dict[int, float] = {}
        for value, one in sorted((p for p in pairs if p[1] != UNLABELLED), reverse=True)[:k]:
            votes[one] = votes.get(one, 0) + math.exp(value / t)
        right += label != UNLABELLED and max(votes, key=lambda one: votes[one]) == label
    return right
