"""What projections do on the unit sphere, and how many dimensions features use: the arithmetic.

Alignment and uniformity are those of Wang & Isola 2020 (alpha = 2, t = 2), RankMe that of Garrido
et al. 2023. All numbers are over the images of all ranks, whatever their number.
"""

import math
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_pl.core.distributed import rank_and_world, row_counts, sum_over_ranks

PAIRED = 512
"""Images whose pairs make up uniformity: the first of the global batch, in the order of ranks.

With larger batches, micro-batches and several ranks, which images these are depends on the ranks.
"""


class StepHealth(NamedTuple):
    """What one step's outputs say, over all ranks.

    Attributes:
        positive_similarity: mean cosine of two views of an image.
        negative_similarity: mean cosine of views of different images; 0 with one image.
        alignment: mean squared distance of positives on the unit sphere, 0 to 4; lower is better.
        uniformity: log of the mean of exp(-2 d^2) over pairs of images; lower is more spread out.
        feature_std: of features of length one: standard deviation, mean over dimensions, times
            the square root of their number. 1 is spread over the sphere, 0 is collapsed.
        projection_std: the same of projections.
        dimension: effective dimension of the projections, 1 for a line through the origin.
        images: N, the global batch.
    """

    positive_similarity: float
    negative_similarity: float
    alignment: float
    uniformity: float
    feature_std: float
    projection_std: float
    dimension: float
    images: int


@torch.no_grad()
def step_health(features: Tensor, projections: Tensor, views: int = 2) -> StepHealth:
    """Computes it from sums of vectors: linear in the batch, and two small collectives.

    Args:
        features: `[VB, D]`, this rank's, first views before second ones.
        projections: `[VB, P]`, likewise.
        views: V, of each image.
    """
    h, z = _on_sphere(features), _on_sphere(projections)
    of_view = z.unflatten(0, (views, -1))
    counts = row_counts(of_view.shape[1], z.device)
    images, width = sum(counts), z.shape[1]
    pairs = [*combinations(of_view, 2)]
    rows, positives = views * images, len(pairs) * images
    parts = {
        "positive": torch.stack([(a * b).sum() for a, b in pairs]).sum()[None],
        "distance": torch.stack([(a - b).square().sum() for a, b in pairs]).sum()[None],
        "z": z.sum(0),
        "z2": z.square().sum(0),
        "h": h.sum(0),
        "h2": h.square().sum(0),
        "rows": _first_rows(of_view[0], counts).flatten(),
    }
    flat = sum_over_ranks(torch.cat([*parts.values()])).split([p.numel() for p in parts.values()])
    total = dict(zip(parts, flat, strict=True))
    # |sum of z|^2 is the sum over all pairs: less each with itself, less the positives.
    negative = total["z"].square().sum() - total["z2"].sum() - 2 * total["positive"]
    uniformity, dimension = _of_pairs(total["rows"].view(-1, width))
    numbers = [
        total["positive"] / positives,
        negative / max(rows * (rows - views), 1),
        total["distance"] / positives,
        uniformity,
        _spread(total["h"], total["h2"], rows),
        _spread(total["z"], total["z2"], rows),
        dimension,
    ]
    return StepHealth._make([*torch.cat([n.reshape(1) for n in numbers]).tolist(), images])


def _on_sphere(rows: Tensor) -> Tensor:
    """In float64: variances of collapsed rows are differences of nearly equal numbers."""
    return F.normalize(in_float64(rows), dim=1)


def in_float64(x: Tensor) -> Tensor:
    """Wide enough for sums of squares; on the CPU where the device has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _first_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """This rank's part of the global batch's first rows, zero elsewhere: the sum is all of them."""
    table = rows.new_zeros(min(sum(counts), PAIRED), rows.shape[1])
    start = sum(counts[: rank_and_world()[0]])
    place = table[start : start + len(rows)]
    place += rows[: len(place)]
    return table


def _of_pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Uniformity, and the effective dimension: (sum of eigenvalues)^2 / sum of their squares."""
    cosine = rows @ rows.T
    # exp(-2 d^2), d^2 = 2 - 2 cosine; without the rows' pairs with themselves.
    pairs = len(rows) * (len(rows) - 1)
    close = (4 * cosine - 4).exp()
    uniformity = ((close.sum() - close.diagonal().sum()) / max(pairs, 1)).log()
    return uniformity, cosine.diagonal().sum().square() / cosine.square().sum().clamp(min=1e-30)


def _spread(total: Tensor, squares: Tensor, rows: int) -> Tensor:
    variance = squares / rows - (total / rows).square()
    return variance.clamp(min=0).sqrt().mean() * math.sqrt(len(total))


def rankme(gram: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values, divided by their sum.

    Source: Garrido et al. 2023, equation 1. Singular values that are zero but for rounding count
    as zero, instead of the paper's epsilon.

    Args:
        gram: `float64 [D, D]`, features transposed times features.

    Returns:
        1 (all features on a line) to D, or to the number of images where those are fewer; NaN of
        features that are no numbers.
    """
    if not bool(gram.isfinite().all()):
        return math.nan
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    values = values[values > values.max() * len(gram) * torch.finfo(gram.dtype).eps].sqrt()
    share = values / values.sum()
    return float((-share * share.log()).sum().exp())
