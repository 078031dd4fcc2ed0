"""Health's numbers against their definitions, a pair at a time; RankMe against an SVD."""

import math
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from health import by_svd, draw, measured
from torch import Tensor

from simclr_pl.monitors import health_metrics as sphere
from simclr_pl.monitors.health_metrics import rankme, step_health

# The numbers --------------------------------------------------------------------------------------


def unit(rows: Tensor) -> list[list[float]]:
    return [[x / math.hypot(*row) for x in row] for row in rows.tolist()]


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def spread(rows: list[list[float]]) -> float:
    columns = list(zip(*rows, strict=True))
    deviations = [math.sqrt(mean((x - mean(c)) ** 2 for x in c)) for c in columns]
    return mean(deviations) * math.sqrt(len(columns))


def literal(views: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The definitions, a pair at a time."""
    (h1, h2), (z1, z2) = ([unit(view) for view in rows] for rows in views)
    views_of = [(i, row) for one in (z1, z2) for i, row in enumerate(one)]
    return {
        "positive_similarity": mean(dot(a, b) for a, b in zip(z1, z2, strict=True)),
        "negative_similarity": mean(
            dot(a, b) for (i, a), (j, b) in permutations(views_of, 2) if i != j
        ),
        "alignment": mean(math.dist(a, b) ** 2 for a, b in zip(z1, z2, strict=True)),
        "uniformity": math.log(
            mean(math.exp(-2 * math.dist(a, b) ** 2) for a, b in combinations(z1, 2))
        ),
        "feature_std": spread(h1 + h2),
        "projection_std": spread(z1 + z2),
    }


@pytest.mark.parametrize("images", [2, 3, 17])
def test_numbers_are_those_of_the_definitions(images: int) -> None:
    views = draw(images)
    got = measured(views)
    expected = literal(views)
    assert {k: v for k, v in got._asdict().items() if k in expected} == pytest.approx(
        expected, rel=1e-12, abs=1e-12
    )
    values = torch.linalg.svdvals(F.normalize(views[1][0], dim=1)) ** 2
    assert got.dimension == pytest.approx(float(values.sum() ** 2 / (values**2).sum()))
    assert got.images == images


def test_of_three_views_every_two_are_positives() -> None:
    (h, z), (_, more) = draw(5), draw(5, seed=1)
    views = torch.cat([z, more[:1]])
    features = torch.cat([h, h[:1].flip(1)])
    got = step_health(features.flatten(0, 1), views.flatten(0, 1), 3)
    pairs = [literal((features[[i, j]], views[[i, j]])) for i, j in combinations(range(3), 2)]
    for name in ("positive_similarity", "alignment"):
        assert getattr(got, name) == pytest.approx(mean(pair[name] for pair in pairs), rel=1e-12)
    rows = [(i, row) for view in views for i, row in enumerate(unit(view))]
    negatives = mean(dot(a, b) for (i, a), (j, b) in permutations(rows, 2) if i != j)
    assert got.negative_similarity == pytest.approx(negatives, rel=1e-12)
    assert got.projection_std == pytest.approx(spread([row for _, row in rows]), rel=1e-12)
    assert got.images == 5


def test_uniformity_is_of_the_first_images_where_there_are_many() -> None:
    views = draw(600)
    z = F.normalize(views[1][0, : sphere.PAIRED], dim=1)
    expected = torch.pdist(z).square().mul(-2).exp().mean().log()
    assert measured(views).uniformity == pytest.approx(float(expected), rel=1e-12)


def test_a_sphere_full_of_projections() -> None:
    z = torch.randn(2, 2000, 64, generator=torch.Generator().manual_seed(0))
    got = step_health(z.flatten(0, 1), z.flatten(0, 1))
    assert got.projection_std == pytest.approx(1, abs=0.01)
    assert got.uniformity == pytest.approx(-4, abs=0.15)  # of an infinite dimension: -4
    assert abs(got.negative_similarity) < 1e-3
    assert got.alignment == pytest.approx(2, abs=0.05)  # the views have nothing to do with another


def test_collapsed_projections() -> None:
    z = torch.ones(64, 8) + 1e-6 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    got = step_health(z, z)
    assert got.positive_similarity == pytest.approx(1)
    assert got.negative_similarity == pytest.approx(1)
    assert got.uniformity == pytest.approx(0, abs=1e-6)
    assert got.dimension == pytest.approx(1)
    # What float32 left of the noise is there still: nothing cancels.
    assert got.projection_std == pytest.approx(spread(unit(z.double())), rel=1e-3)
    assert 1e-7 < got.projection_std < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_widened_before_anything_else(dtype: torch.dtype) -> None:
    views = draw(20)
    narrow = tuple(rows.to(dtype) for rows in views)
    assert measured(narrow) == measured(tuple(rows.double() for rows in narrow))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [torch.zeros(8, 4), torch.ones(2, 4)])
def test_zeros_and_a_lone_image_are_no_reason_to_stop(rows: Tensor) -> None:
    got = step_health(rows, rows)
    assert got.feature_std == got.negative_similarity == 0


# RankMe -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "width", "rank"), [(50, 8, 8), (5, 8, 5), (50, 8, 3)])
def test_rankme_is_the_entropy_of_singular_values(images: int, width: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(images, rank, generator=generator, dtype=torch.float64)
    features = left @ torch.randn(rank, width, generator=generator, dtype=torch.float64)
    got = rankme(features.T @ features)
    assert got == pytest.approx(by_svd(features), rel=1e-6)
    assert 1 < got <= rank


def test_rankme_of_orthogonal_features_is_their_number() -> None:
    assert rankme(7 * torch.eye(5, dtype=torch.float64)) == pytest.approx(5)
    assert rankme(torch.ones(5, 5, dtype=torch.float64)) == pytest.approx(1)
    assert rankme(torch.zeros(5, 5, dtype=torch.float64)) == pytest.approx(1)
    assert math.isnan(rankme(torch.full((5, 5), math.inf, dtype=torch.float64)))
