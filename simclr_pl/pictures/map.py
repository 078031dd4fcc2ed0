"""Features in two dimensions: PCA always, t-SNE where there are few, UMAP where it is installed."""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST, MOST = 12, 2_500
"""Images that t-SNE and UMAP are drawn of: fewer have no structure to show, more take minutes."""


class Flat(NamedTuple):
    """A map of features.

    Attributes:
        title: the method, and what it kept.
        points: `float [N, 2]`.
    """

    title: str
    points: Tensor


def flatten(features: Tensor) -> list[Flat]:
    """Maps of features, by every method that is there.

    Args:
        features: `float [N, D]`, N at least 3.
    """
    maps = [_pca(features)]
    if FEWEST <= len(features) <= MOST:
        maps.append(_tsne(features))
        if find_spec("umap") is not None:
            maps.append(_umap(features))
    return maps


def _pca(features: Tensor) -> Flat:
    centred = features - features.mean(0)
    left, size, _ = torch.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * size[:2]
    # Of a collapsed encoder nothing varies, and of that nothing is kept.
    kept = float(size[:2].square().sum() / size.square().sum().clamp_min(1e-12))
    if points.shape[1] < 2:
        points = torch.cat([points, torch.zeros_like(points)], 1)[:, :2]
    return Flat(f"PCA ({kept:.0%} of the variance)", points)


def _tsne(features: Tensor) -> Flat:
    from sklearn.manifold import TSNE

    perplexity = min(30, len(features) // 4)
    # Not sklearn's own start from PCA: it divides by the variance, which a collapse hasn't.
    start = _pca(features).points
    start = start / start[:, 0].std().clamp_min(1e-12) * 1e-4
    tsne = TSNE(perplexity=perplexity, init=start.numpy(), random_state=0)
    points = torch.from_numpy(tsne.fit_transform(features.numpy()))
    return Flat(f"t-SNE (perplexity {perplexity})", points)


def _umap(features: Tensor) -> Flat:
    from umap import UMAP  # type: ignore[import-not-found,unused-ignore]

    neighbours = min(15, len(features) - 1)
    # More than one job could not keep to a seed.
    umap = UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1)
    points = torch.from_numpy(umap.fit_transform(features.numpy()))
    return Flat(f"UMAP ({neighbours} neighbours)", points)
