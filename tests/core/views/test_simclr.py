"""Two views of a batch: against torchvision sample by sample, and the same bits in any batch."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.views import simclr as made
from simclr_pl.core.views.blur import blur_radius
from simclr_pl.core.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION
from simclr_pl.core.views.simclr import JITTER_CHANCE, SIGMA

ADJUST: dict[int, Callable[[Tensor, float], Tensor]] = {
    BRIGHTNESS: TF.adjust_brightness,
    CONTRAST: TF.adjust_contrast,
    SATURATION: TF.adjust_saturation,
    HUE: TF.adjust_hue,
}
PLAIN: dict[int, dict[str, tuple[float, ...]]] = {
    channels: {"mean": (0.0,) * channels, "std": (1.0,) * channels} for channels in (1, 3)
}
OFF: dict[str, Any] = {
    "scale": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0,
}  # fmt: skip


def photos(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def reference(views: SimCLRViews, images: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    """The paper's sequence by torchvision, one sample after the other."""
    how = views.draw(index, epoch, view)
    boxes = views.boxes(how, *images.shape[-2:])
    size, done = views.image_size, []
    kernel = 2 * blur_radius(size) + 1
    for i, image in enumerate(images):
        pixels = TF.to_dtype(image, torch.float32, scale=True)
        pixels = TF.resized_crop(pixels, *boxes[i].tolist(), [size, size], antialias=True)
        pixels = TF.horizontal_flip(pixels) if how.flip[i] else pixels
        for operation in how.jitter.order[i].tolist() if how.jitter.on[i] else []:
            pixels = ADJUST[operation](pixels, float(how.jitter.factor[i, operation]))
        if how.gray[i]:
            pixels = TF.rgb_to_grayscale(pixels, num_output_channels=pixels.shape[0])
        if how.blur[i]:
            pixels = TF.gaussian_blur(pixels, [kernel, kernel], [float(how.sigma[i])] * 2)
        done.append(TF.normalize(pixels, list(views.mean), list(views.std)))
    return torch.stack(done)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Sums that were split over threads by batch size would show here."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


# The whole view --------------------------------------------------------------------------------

SHAPES = {
    "CIFAR": (24, 3, 32, 32, 32),
    "Fashion-MNIST": (24, 1, 28, 28, 28),
    "digits": (24, 1, 8, 8, 8),
    "wide, to a smaller side": (16, 3, 40, 60, 32),
    "256 to 224": (6, 3, 256, 256, 224),
    "32 up to 64, gray": (12, 1, 32, 32, 64),
}


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize(
    ("count", "channels", "height", "width", "size"), SHAPES.values(), ids=SHAPES.keys()
)
def test_a_view_is_torchvisions_sequence_sample_by_sample(
    count: int, channels: int, height: int, width: int, size: int, view: int
) -> None:
    images, index = photos(count, channels, height, width), torch.arange(count) + 100
    views = SimCLRViews(size, **PLAIN[channels], jitter=0.5, blur=0.5, seed=3)
    got = views(images, index, 2)[view]
    assert got.shape == (count, channels, size, size)
    assert got.dtype == torch.float32
    want = reference(views, images, index, 2, view)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_with_everything_on_and_at_its_strongest_is_torchvisions(channels: int) -> None:
    images, index = photos(48, channels, 36, 36), torch.arange(48)
    views = SimCLRViews(24, **PLAIN[channels], jitter=2.5, flip=1.0, grayscale=0.5, blur=1.0)
    got = views(images, index, 0)[0]
    want = reference(views, images, index, 0, 0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_views_are_normalised_with_mean_and_std() -> None:
    images, index = photos(8, 3, 20, 20), torch.arange(8)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    plain = SimCLRViews(20, **PLAIN[3])(images, index, 0)
    got = SimCLRViews(20, mean=mean, std=std)(images, index, 0)
    for p, g in zip(plain, got, strict=True):
        torch.testing.assert_close(g, TF.normalize(p, list(mean), list(std)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_already_cut_get_the_rest_of_the_same_view(channels: int) -> None:
    """`[B, 2, C, S, S]`, as workers hand them: with a box of the whole image nothing was cut."""
    images, index = photos(24, channels, 16, 16), torch.arange(24)
    views = SimCLRViews(16, **PLAIN[channels], scale=(1.0, 1.0))
    cut = torch.stack([images, images], 1)
    for whole, rest in zip(views(images, index, 5), views(cut, index, 5), strict=True):
        torch.testing.assert_close(rest, whole, atol=1e-5, rtol=0)


def test_crops_already_cut_go_to_their_own_view() -> None:
    index = torch.arange(4)
    views = SimCLRViews(16, **PLAIN[3], **OFF)
    cut = photos(4 * 3, 3, 16, 16).view(4, 3, 3, 16, 16)  # both views and a clean image
    first, second = views(cut, index, 0)
    torch.testing.assert_close(first, cut[:, 0] / 255)
    torch.testing.assert_close(second, cut[:, 1] / 255)
    assert torch.equal(views.one(cut, index, 0), first)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_view_alone_is_the_first_of_two(channels: int) -> None:
    images, index = photos(24, channels, 20, 24), torch.arange(24) * 7
    views = SimCLRViews(16, **PLAIN[channels])
    assert torch.equal(views.one(images, index, 5), views(images, index, 5)[0])


@pytest.mark.parametrize("part", [1, 2**12, 2**14])
def test_parts_that_a_cpu_works_on_change_no_bit(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, index = photos(24, 3, 32, 40), torch.arange(24)
    views = SimCLRViews(32, **PLAIN[3])
    whole = views(images, index, 5)
    monkeypatch.setattr(made, "PART", part)
    for got, want in zip(views(images, index, 5), whole, strict=True):
        assert torch.equal(got, want)


# Bits ------------------------------------------------------------------------------------------

BITS = {
    "digits": (40, 1, 8, 8, 8),
    "Fashion-MNIST": (40, 1, 28, 28, 28),
    "CIFAR": (40, 3, 32, 32, 32),
    "STL": (12, 3, 96, 96, 96),
    "wide": (12, 3, 40, 60, 32),
    "256 to 224": (5, 3, 256, 256, 224),
    "to a sixth": (12, 3, 96, 70, 12),
}


@pytest.mark.parametrize(
    ("count", "channels", "height", "width", "size"), BITS.values(), ids=BITS.keys()
)
def test_a_sample_has_the_same_bits_in_any_batch(
    count: int, channels: int, height: int, width: int, size: int
) -> None:
    images, index = photos(count, channels, height, width), torch.arange(count) * 3 + 1
    views = SimCLRViews(size, **PLAIN[channels], seed=1)
    everything = views(images, index, 4)
    again = views(images, index, 4)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    shuffled = views(images[order], index[order], 4)
    half = views(images[: count // 2], index[: count // 2], 4)
    for view in (0, 1):
        assert torch.equal(again[view], everything[view])
        assert torch.equal(shuffled[view], everything[view][order])
        assert torch.equal(half[view], everything[view][: count // 2])
    for i in range(count):
        alone = views(images[i : i + 1], index[i : i + 1], 4)
        assert torch.equal(alone[0][0], everything[0][i])
        assert torch.equal(alone[1][0], everything[1][i])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [24, 20])
def test_bits_do_not_depend_on_the_runs_precision(dtype: torch.dtype, size: int) -> None:
    """Micro-batches' views are made in the model's step, and again in backward, outside of it."""
    images, index = photos(16, 3, 24, 24), torch.arange(16)
    given = [images, torch.stack([images, images.flip(0)], 1)] if size == 24 else [images]
    views = SimCLRViews(size, **PLAIN[3], blur=0.9)
    want = [views(each, index, 1) for each in given]
    torch.set_default_dtype(dtype)
    try:
        by_default = [views(each, index, 1) for each in given]
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        in_autocast = [views(each, index, 1) for each in given]
    for got in (by_default, in_autocast):
        for one, other in zip(itertools.chain(*got), itertools.chain(*want), strict=True):
            assert one.dtype == torch.float32
            assert one.equal(other)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("count", "size"), [(40, 32), (2, 224)])
def test_threads_that_share_a_batch_do_not_change_bits(count: int, size: int) -> None:
    images, index = photos(count, 3, size, size), torch.arange(count)
    views = SimCLRViews(size, **PLAIN[3], jitter=1.0)
    together, alone = views(images, index, 0), views(images[:1], index[:1], 0)
    assert torch.equal(alone[0][0], together[0][0])
    assert torch.equal(alone[1][0], together[1][0])


def test_two_views_of_an_image_differ() -> None:
    first, second = SimCLRViews(32, **PLAIN[3])(photos(64, 3, 32, 32), torch.arange(64), 0)
    assert bool((first != second).flatten(1).any(1).all())


def test_equal_images_get_different_views() -> None:
    images = photos(1, 3, 32, 32).expand(32, -1, -1, -1)
    first, second = SimCLRViews(32, **PLAIN[3])(images, torch.arange(32), 0)
    for one, other in itertools.combinations([*first, *second], 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_epoch_or_seed_makes_other_views(seed: int, epoch: int) -> None:
    images, index = photos(32, 3, 32, 32), torch.arange(32)
    before = SimCLRViews(32, **PLAIN[3], seed=0)(images, index, 0)
    after = SimCLRViews(32, **PLAIN[3], seed=seed)(images, index, epoch)
    for b, a in zip(before, after, strict=True):
        assert bool((b != a).flatten(1).any(1).all())


def test_torchs_generator_is_neither_read_nor_moved() -> None:
    images, index = photos(16, 3, 32, 32), torch.arange(16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = SimCLRViews(32)(images, index, 0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        second = SimCLRViews(32)(images, index, 0)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("size", [32, 20])
def test_images_are_not_modified(size: int) -> None:
    images = photos(8, 3, 32, 32)
    kept = images.clone()
    views = SimCLRViews(size)
    views(images, torch.arange(8), 0)
    views.clean(images)
    cut = torch.stack([images, images], 1)
    if size == 32:
        views(cut, torch.arange(8), 0)
    assert torch.equal(images, kept)
    assert torch.equal(cut, torch.stack([kept, kept], 1))


def test_views_carry_no_gradient_and_nothing_into_checkpoints() -> None:
    views = SimCLRViews(16)
    first, second = views(photos(2, 3, 16, 16), torch.arange(2), 0)
    assert not first.requires_grad
    assert not second.requires_grad
    assert not views.clean(photos(2, 3, 16, 16)).requires_grad
    assert list(views.parameters()) == []
    assert views.state_dict() == {}


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
    images = photos(16, channels, 24, 24)
    views = SimCLRViews(24, **PLAIN[channels], **OFF)
    for view in views(images, torch.arange(16), 0):
        torch.testing.assert_close(view, images / 255, atol=1e-6, rtol=0)


def test_flip_of_probability_one_mirrors_every_image() -> None:
    images = photos(16, 3, 24, 24)
    views = SimCLRViews(24, **PLAIN[3], **{**OFF, "flip": 1.0})
    for view in views(images, torch.arange(16), 0):
        torch.testing.assert_close(view, images.flip(-1) / 255, atol=1e-6, rtol=0)


def test_grayscale_of_probability_one_leaves_no_colour() -> None:
    views = SimCLRViews(24, **PLAIN[3], **{**OFF, "grayscale": 1.0})
    images = photos(16, 3, 24, 24)
    want = TF.rgb_to_grayscale(images / 255, num_output_channels=3)
    for view in views(images, torch.arange(16), 0):
        torch.testing.assert_close(view, want, atol=1e-4, rtol=0)


def test_blur_of_probability_one_blurs_every_image() -> None:
    views = SimCLRViews(24, **PLAIN[3], **{**OFF, "blur": 1.0})
    images = photos(16, 3, 24, 24)
    for view in views(images, torch.arange(16), 0):
        # Noise loses variance under any blur of half a pixel or more; below that it hardly moves.
        assert float(view.var()) < 0.6 * float((images / 255).var())
    assert bool(views.draw(torch.arange(1000), 0, 0).blur.all())


def test_jitter_zero_leaves_colours_and_jitter_one_does_not() -> None:
    images, index = photos(64, 3, 24, 24), torch.arange(64)
    without = SimCLRViews(24, **PLAIN[3], **OFF)(images, index, 0)[0]
    strong = SimCLRViews(24, **PLAIN[3], **{**OFF, "jitter": 1.0})
    changed = (strong(images, index, 0)[0] - without).abs().flatten(1).amax(1) > 1e-3
    assert torch.equal(changed, strong.draw(index, 0, 0).jitter.on)
    assert not bool(SimCLRViews(24, jitter=0.0).draw(torch.arange(1000), 0, 0).jitter.on.any())


# Clean images ----------------------------------------------------------------------------------


def test_clean_of_the_same_size_is_the_image_normalised() -> None:
    images = photos(8, 3, 32, 32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    got = SimCLRViews(32, mean=mean, std=std).clean(images)
    want = TF.normalize(images / 255, list(mean), list(std))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 60, 32), (61, 40, 40), (28, 28, 64), (40, 60, 40)]
)
def test_clean_of_another_size_is_the_central_square(
    height: int, width: int, size: int, channels: int
) -> None:
    images = photos(4, channels, height, width)
    got = SimCLRViews(size, **PLAIN[channels]).clean(images)
    side = min(height, width)
    box = (height - side) // 2, (width - side) // 2, side, side
    want = TF.resized_crop(images / 255, *box, [size, size], antialias=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_a_clean_image_has_the_same_bits_in_any_batch() -> None:
    images = photos(20, 3, 40, 60)
    views = SimCLRViews(32)
    alone = torch.cat([views.clean(image[None]) for image in images])
    assert torch.equal(views.clean(images), alone)


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
    first, _ = SimCLRViews(8, **edge)(photos(4, 3, 8, 8), torch.arange(4), 0)
    assert bool(first.isfinite().all())


@pytest.mark.parametrize("size", [4, 5])
def test_the_smallest_images_make_finite_views(size: int) -> None:
    views = SimCLRViews(size, **PLAIN[3], scale=(0.001, 1.0), blur=1.0)
    first, second = views(photos(200, 3, 4, 5), torch.arange(200), 0)
    assert bool(first.isfinite().all())
    assert bool(second.isfinite().all())


@pytest.mark.gpu
def test_views_on_a_gpu_agree_with_those_on_the_cpu() -> None:
    images, index = photos(64, 3, 40, 60), torch.arange(64)
    views = SimCLRViews(32, **PLAIN[3])
    here = views(images, index, 1)
    there = views.cuda()(images.cuda(), index.cuda(), 1)
    for mine, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.cpu(), mine, atol=1e-4, rtol=0)
