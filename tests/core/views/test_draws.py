"""What is drawn for a view, by which chance; each switch alone; values that cannot be."""

import math
from typing import Any

import pytest
import torch
from noise import pictures
from plain_views import OFF, PLAIN
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.views.color import HUE
from simclr_pl.core.views.simclr import JITTER_CHANCE, SIGMA

# What is drawn ---------------------------------------------------------------------------------

MANY = 20_000


def within_chance(flags: Tensor, chance: float) -> bool:
    spread = math.sqrt(chance * (1 - chance) / len(flags))
    return abs(float(flags.double().mean()) - chance) < 4.5 * spread


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_draws_have_the_papers_ranges_and_chances(strength: float) -> None:
    views = SimCLRViews(32, flip=0.5, jitter=strength, grayscale=0.2, blur=0.3)
    how = views.draw(torch.arange(MANY), 0, 0)
    assert within_chance(how.flip, 0.5)
    assert within_chance(how.jitter.on, JITTER_CHANCE)
    assert within_chance(how.gray, 0.2)
    assert within_chance(how.blur, 0.3)
    edges = [(max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength)] * 3
    edges.append((-0.2 * strength, 0.2 * strength))
    for drawn, (low, high) in zip([*how.jitter.factor.T, how.sigma], [*edges, SIGMA], strict=True):
        assert low <= float(drawn.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(drawn.max()) <= high
        middle = (low + high) / 2
        assert abs(float(drawn.double().mean()) - middle) < 4.5 * (high - low) / math.sqrt(
            12 * MANY
        )


def test_the_order_of_colour_operations_varies_per_sample() -> None:
    order = SimCLRViews(32).draw(torch.arange(MANY), 0, 0).jitter.order
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert float((counts - MANY / 24).abs().max()) < 4.5 * math.sqrt(MANY / 24)


def test_what_is_drawn_for_different_things_is_independent() -> None:
    views = SimCLRViews(32, flip=0.5, grayscale=0.5, blur=0.5)
    drawn = []
    for view in (0, 1):
        how = views.draw(torch.arange(MANY), 0, view)
        drawn += [how.flip, how.gray, how.blur, how.sigma, *how.jitter.factor.T, *how.crop.T]
        drawn += [how.jitter.on, how.jitter.order[:, 0] == HUE]
    correlation = torch.corrcoef(torch.stack([d.double() for d in drawn]))
    correlation.fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / math.sqrt(MANY)


def test_the_draw_does_not_depend_on_the_recipe() -> None:
    """A switch set to another value changes its own operation only."""
    index = torch.arange(100)
    bare = SimCLRViews(32, **OFF).draw(index, 1, 1)
    full = SimCLRViews(64, flip=1, grayscale=1, blur=1).draw(index, 1, 1)
    assert torch.equal(bare.crop, full.crop)
    assert torch.equal(bare.jitter.order, full.jitter.order)
    assert torch.equal(bare.sigma, full.sigma)


# Switches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_with_everything_off_a_view_is_the_image(channels: int) -> None:
    images = pictures(16, channels, 24, 24)
    views = SimCLRViews(24, **PLAIN[channels], **OFF)
    for view in views(images, torch.arange(16), 0):
        torch.testing.assert_close(view, images / 255, atol=1e-6, rtol=0)


def test_flip_of_probability_one_mirrors_every_image() -> None:
    images = pictures(16, 3, 24, 24)
    views = SimCLRViews(24, **PLAIN[3], **{**OFF, "flip": 1.0})
    for view in views(images, torch.arange(16), 0):
        torch.testing.assert_close(view, images.flip(-1) / 255, atol=1e-6, rtol=0)


def test_grayscale_of_probability_one_leaves_no_colour() -> None:
    views = SimCLRViews(24, **PLAIN[3], **{**OFF, "grayscale": 1.0})
    images = pictures(16, 3, 24, 24)
    want = TF.rgb_to_grayscale(images / 255, num_output_channels=3)
    for view in views(images, torch.arange(16), 0):
        torch.testing.assert_close(view, want, atol=1e-4, rtol=0)


def test_blur_of_probability_one_blurs_every_image() -> None:
    views = SimCLRViews(24, **PLAIN[3], **{**OFF, "blur": 1.0})
    images = pictures(16, 3, 24, 24)
    for view in views(images, torch.arange(16), 0):
        # Noise loses variance under any blur of half a pixel or more; below that it hardly moves.
        assert float(view.var()) < 0.6 * float((images / 255).var())
    assert bool(views.draw(torch.arange(1000), 0, 0).blur.all())


def test_jitter_zero_leaves_colours_and_jitter_one_does_not() -> None:
    images, index = pictures(64, 3, 24, 24), torch.arange(64)
    without = SimCLRViews(24, **PLAIN[3], **OFF)(images, index, 0)[0]
    strong = SimCLRViews(24, **PLAIN[3], **{**OFF, "jitter": 1.0})
    changed = (strong(images, index, 0)[0] - without).abs().flatten(1).amax(1) > 1e-3
    assert torch.equal(changed, strong.draw(index, 0, 0).jitter.on)
    assert not bool(SimCLRViews(24, jitter=0.0).draw(torch.arange(1000), 0, 0).jitter.on.any())


# Bad arguments ---------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any]]] = [
    ("image_size", {"image_size": 0}),
    ("image_size", {"image_size": 3}),
    ("scale", {"scale": (0.0, 1.0)}),
    ("scale", {"scale": (0.5, 0.2)}),
    ("scale", {"scale": (0.5, 1.2)}),
    ("scale", {"scale": (-0.1, 1.0)}),
    ("flip", {"flip": -0.1}),
    ("flip", {"flip": 1.5}),
    ("flip", {"flip": math.nan}),
    ("grayscale", {"grayscale": 2.0}),
    ("blur", {"blur": -1.0}),
    ("blur", {"blur": 23.0}),
    ("jitter", {"jitter": -0.5}),
    ("jitter", {"jitter": 2.6}),
    ("jitter", {"jitter": math.nan}),
    ("std", {"std": (0.2, 0.2, 0.0)}),
    ("std", {"std": (0.2, 0.2)}),
    ("mean", {"mean": (0.5,)}),
]


@pytest.mark.parametrize(("key", "bad"), BAD, ids=[str(bad) for _, bad in BAD])
def test_a_value_out_of_range_is_refused_by_its_key(key: str, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}") as caught:
        SimCLRViews(**{"image_size": 32, **bad})
    assert "\n" not in str(caught.value)
    assert str(bad[key] if not isinstance(bad[key], tuple) else list(bad[key])) in str(caught.value)


@pytest.mark.parametrize(
    "edge", [{"flip": 0.0}, {"flip": 1.0}, {"jitter": 2.5}, {"scale": (1.0, 1.0)}]
)
def test_values_at_the_edge_are_accepted(edge: dict[str, Any]) -> None:
    first, _ = SimCLRViews(8, **edge)(pictures(4, 3, 8, 8), torch.arange(4), 0)
    assert bool(first.isfinite().all())


@pytest.mark.parametrize("size", [4, 5])
def test_the_smallest_images_make_finite_views(size: int) -> None:
    views = SimCLRViews(size, **PLAIN[3], scale=(0.001, 1.0), blur=1.0)
    first, second = views(pictures(200, 3, 4, 5), torch.arange(200), 0)
    assert bool(first.isfinite().all())
    assert bool(second.isfinite().all())
