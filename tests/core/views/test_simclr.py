"""Two views of a batch: against torchvision sample by sample, and the same bits in any batch."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from noise import pictures
from plain_views import ADJUST, OFF, PLAIN
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews
from simclr_pl.core.views import simclr as made
from simclr_pl.core.views.blur import blur_radius


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
    images, index = pictures(count, channels, height, width), torch.arange(count) + 100
    views = SimCLRViews(size, **PLAIN[channels], jitter=0.5, blur=0.5, seed=3)
    got = views(images, index, 2)[view]
    assert got.shape == (count, channels, size, size)
    assert got.dtype == torch.float32
    want = reference(views, images, index, 2, view)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_with_everything_on_and_at_its_strongest_is_torchvisions(channels: int) -> None:
    images, index = pictures(48, channels, 36, 36), torch.arange(48)
    views = SimCLRViews(24, **PLAIN[channels], jitter=2.5, flip=1.0, grayscale=0.5, blur=1.0)
    got = views(images, index, 0)[0]
    want = reference(views, images, index, 0, 0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_views_are_normalised_with_mean_and_std() -> None:
    images, index = pictures(8, 3, 20, 20), torch.arange(8)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    plain = SimCLRViews(20, **PLAIN[3])(images, index, 0)
    got = SimCLRViews(20, mean=mean, std=std)(images, index, 0)
    for p, g in zip(plain, got, strict=True):
        torch.testing.assert_close(g, TF.normalize(p, list(mean), list(std)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_already_cut_get_the_rest_of_the_same_view(channels: int) -> None:
    """`[B, 2, C, S, S]`, as workers hand them: with a box of the whole image nothing was cut."""
    images, index = pictures(24, channels, 16, 16), torch.arange(24)
    views = SimCLRViews(16, **PLAIN[channels], scale=(1.0, 1.0))
    cut = torch.stack([images, images], 1)
    for whole, rest in zip(views(images, index, 5), views(cut, index, 5), strict=True):
        torch.testing.assert_close(rest, whole, atol=1e-5, rtol=0)


def test_crops_already_cut_go_to_their_own_view() -> None:
    index = torch.arange(4)
    views = SimCLRViews(16, **PLAIN[3], **OFF)
    cut = pictures(4 * 3, 3, 16, 16).view(4, 3, 3, 16, 16)  # both views and a clean image
    first, second = views(cut, index, 0)
    torch.testing.assert_close(first, cut[:, 0] / 255)
    torch.testing.assert_close(second, cut[:, 1] / 255)
    assert torch.equal(views.one(cut, index, 0), first)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_view_alone_is_the_first_of_two(channels: int) -> None:
    images, index = pictures(24, channels, 20, 24), torch.arange(24) * 7
    views = SimCLRViews(16, **PLAIN[channels])
    assert torch.equal(views.one(images, index, 5), views(images, index, 5)[0])


@pytest.mark.parametrize("part", [1, 2**12, 2**14])
def test_parts_that_a_cpu_works_on_change_no_bit(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, index = pictures(24, 3, 32, 40), torch.arange(24)
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
    images, index = pictures(count, channels, height, width), torch.arange(count) * 3 + 1
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
    images, index = pictures(16, 3, 24, 24), torch.arange(16)
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
    images, index = pictures(count, 3, size, size), torch.arange(count)
    views = SimCLRViews(size, **PLAIN[3], jitter=1.0)
    together, alone = views(images, index, 0), views(images[:1], index[:1], 0)
    assert torch.equal(alone[0][0], together[0][0])
    assert torch.equal(alone[1][0], together[1][0])


def test_two_views_of_an_image_differ() -> None:
    first, second = SimCLRViews(32, **PLAIN[3])(pictures(64, 3, 32, 32), torch.arange(64), 0)
    assert bool((first != second).flatten(1).any(1).all())


def test_equal_images_get_different_views() -> None:
    images = pictures(1, 3, 32, 32).expand(32, -1, -1, -1)
    first, second = SimCLRViews(32, **PLAIN[3])(images, torch.arange(32), 0)
    for one, other in itertools.combinations([*first, *second], 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_epoch_or_seed_makes_other_views(seed: int, epoch: int) -> None:
    images, index = pictures(32, 3, 32, 32), torch.arange(32)
    before = SimCLRViews(32, **PLAIN[3], seed=0)(images, index, 0)
    after = SimCLRViews(32, **PLAIN[3], seed=seed)(images, index, epoch)
    for b, a in zip(before, after, strict=True):
        assert bool((b != a).flatten(1).any(1).all())


def test_torchs_generator_is_neither_read_nor_moved() -> None:
    images, index = pictures(16, 3, 32, 32), torch.arange(16)
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
    images = pictures(8, 3, 32, 32)
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
    first, second = views(pictures(2, 3, 16, 16), torch.arange(2), 0)
    assert not first.requires_grad
    assert not second.requires_grad
    assert not views.clean(pictures(2, 3, 16, 16)).requires_grad
    assert list(views.parameters()) == []
    assert views.state_dict() == {}


# Clean images ----------------------------------------------------------------------------------


def test_clean_of_the_same_size_is_the_image_normalised() -> None:
    images = pictures(8, 3, 32, 32)
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
    images = pictures(4, channels, height, width)
    got = SimCLRViews(size, **PLAIN[channels]).clean(images)
    side = min(height, width)
    box = (height - side) // 2, (width - side) // 2, side, side
    want = TF.resized_crop(images / 255, *box, [size, size], antialias=True)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_a_clean_image_has_the_same_bits_in_any_batch() -> None:
    images = pictures(20, 3, 40, 60)
    views = SimCLRViews(32)
    alone = torch.cat([views.clean(image[None]) for image in images])
    assert torch.equal(views.clean(images), alone)


@pytest.mark.gpu
def test_views_on_a_gpu_agree_with_those_on_the_cpu() -> None:
    images, index = pictures(64, 3, 40, 60), torch.arange(64)
    views = SimCLRViews(32, **PLAIN[3])
    here = views(images, index, 1)
    there = views.cuda()(images.cuda(), index.cuda(), 1)
    for mine, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.cpu(), mine, atol=1e-4, rtol=0)
