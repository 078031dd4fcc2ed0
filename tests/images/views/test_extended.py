"""The extended views: each operation by its definition, the paper's bits, no trace of a batch."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from noise import pictures
from plain_views import OFF, PLAIN
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews, UserError
from simclr_pl.images.views.extended import MoreViews, Own
from simclr_pl.images.views.turn import turned

MANY = 20_000
ALL: dict[str, Any] = {
    "vertical_flip": 0.5, "quarter_turns": True, "rotation": 40.0, "padding": 3, "solarise": 0.5,
}  # fmt: skip
WITHOUT_PADDING = {**ALL, "padding": 0}


def own(views: MoreViews, index: Tensor, epoch: int = 0, view: int = 0) -> Own:
    """What is random beyond the paper's."""
    return Own(*views.draw(index, epoch, view).own.unbind(1))


def plain(channels: int = 3, **options: Any) -> dict[str, Any]:
    """Options of views that neither normalise nor change anything but what is asked for."""
    scale = {} if options.get("padding") else {"scale": (1.0, 1.0)}
    without = {key: value for key, value in OFF.items() if key != "scale"}
    return {**PLAIN.get(channels, {}), **without, **scale, **options}


# Off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_with_all_off_it_is_the_papers_to_the_bit(channels: int) -> None:
    images, index = pictures(24, channels, 20, 26), torch.arange(24) * 3
    paper, more = (kind(16, **PLAIN[channels], seed=4) for kind in (SimCLRViews, MoreViews))
    sizes = torch.tensor([[20, 26], [18, 9]] * 12)
    for options in ({}, {"sizes": sizes}):
        made = more(images, index, 5, **options), paper(images, index, 5, **options)
        for got, want in zip(*made, strict=True):
            assert got.equal(want)
        assert more.clean(images, **options).equal(paper.clean(images, **options))
    cut = pictures(24 * 3, channels, 16, 16).view(24, 3, channels, 16, 16)
    for got, want in zip(more(cut, index, 5), paper(cut, index, 5), strict=True):
        assert got.equal(want)


def test_the_papers_draws_do_not_move() -> None:
    index = torch.arange(500)
    for view in (0, 1):
        got = MoreViews(16, **WITHOUT_PADDING).draw(index, 3, view)
        want = SimCLRViews(16).draw(index, 3, view)
        for mine, papers in zip(got[:2], want[:2], strict=True):
            assert mine.equal(papers)
        for mine, papers in zip(got.jitter, want.jitter, strict=True):
            assert mine.equal(papers)
        assert got.sigma.equal(want.sigma)


def test_clean_images_are_the_papers_with_all_on() -> None:
    images = pictures(6, 3, 30, 24)
    for sizes in (None, torch.tensor([[30, 24], [20, 20], [9, 24]] * 2)):
        got = MoreViews(16, **ALL).clean(images, sizes)
        assert got.equal(SimCLRViews(16).clean(images, sizes))


# Each operation --------------------------------------------------------------------------------


def test_vertical_flip() -> None:
    images, index = pictures(64, 3, 16, 16), torch.arange(64)
    views = MoreViews(16, **plain(vertical_flip=0.5))
    for view, got in enumerate(views(images, index, 0)):
        on = own(views, index, view=view).vertical > 0
        assert 16 < int(on.sum()) < 48
        for k in range(64):
            want = TF.vertical_flip(images[k]) if on[k] else images[k]
            torch.testing.assert_close(got[k], want / 255, atol=1e-6, rtol=0)


def test_quarter_turns() -> None:
    images, index = pictures(64, 3, 16, 16), torch.arange(64)
    views = MoreViews(16, **plain(quarter_turns=True))
    for view, got in enumerate(views(images, index, 0)):
        quarters = own(views, index, view=view).quarters
        assert quarters.unique().tolist() == [0, 1, 2, 3]
        for k in range(64):
            want = TF.rotate(images[k], 90 * float(quarters[k]))
            torch.testing.assert_close(got[k], want / 255, atol=1e-6, rtol=0)


def test_flips_come_before_quarter_turns() -> None:
    images, index = pictures(64, 3, 16, 16), torch.arange(64)
    views = MoreViews(16, **plain(quarter_turns=True, vertical_flip=0.5, flip=0.5))
    how, got = views.draw(index, 0, 0), views(images, index, 0)[0]
    for k in range(64):
        want = TF.horizontal_flip(images[k]) if how.flip[k] else images[k]
        want = TF.vertical_flip(want) if how.own[k, 0] else want
        want = TF.rotate(want, 90 * float(how.own[k, 1]))
        torch.testing.assert_close(got[k], want / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_padding_is_torchvisions_random_crop(flip: float) -> None:
    images, index = pictures(64, 3, 12, 12), torch.arange(64)
    views = MoreViews(12, **plain(padding=4, flip=flip))
    how, places = views.draw(index, 0, 0), own(views, index)
    padded = TF.pad(images, [4])
    for k, got in enumerate(views(images, index, 0)[0]):
        want = TF.crop(padded[k], int(places.top[k]), int(places.left[k]), 12, 12)
        want = TF.horizontal_flip(want) if how.flip[k] else want
        torch.testing.assert_close(got, want / 255, atol=1e-6, rtol=0)


def test_an_image_of_another_size_is_padded_as_evaluation_sees_it() -> None:
    images, index = pictures(16, 3, 30, 41), torch.arange(16)
    views = MoreViews(12, **plain(padding=2))
    places, clean = own(views, index), F.pad(views.clean(images), (2,) * 4)
    for k, got in enumerate(views(images, index, 0)[0]):
        top, left = int(places.top[k]), int(places.left[k])
        assert got.equal(clean[k, :, top : top + 12, left : left + 12])


def test_solarise_is_torchvisions_behind_the_blur() -> None:
    images, index = pictures(64, 3, 24, 24), torch.arange(64)
    options = plain(blur=0.5, jitter=0.5, grayscale=0.3, scale=(0.3, 1.0), flip=0.5)
    views, without = MoreViews(24, **options, solarise=0.4), SimCLRViews(24, **options)
    on = own(views, index).solarise > 0
    pairs = zip(views(images, index, 0)[0], without(images, index, 0)[0], on, strict=True)
    for got, plain_, is_on in pairs:
        want = TF.solarize(plain_, 0.5) if is_on else plain_
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_solarise_looks_at_pixels_before_they_are_normalised() -> None:
    images, index = pictures(32, 3, 24, 24), torch.arange(32)
    bare = {key: value for key, value in plain(blur=0.5).items() if key not in ("mean", "std")}
    mean, std = (0.3, 0.5, 0.8), (0.1, 0.2, 0.3)
    got = MoreViews(24, **bare, mean=mean, std=std, solarise=1.0)(images, index, 0)[0]
    want = SimCLRViews(24, **plain(blur=0.5))(images, index, 0)[0]
    want = TF.normalize(TF.solarize(want, 0.5), list(mean), list(std))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_turns_the_papers_boxes(channels: int) -> None:
    images, index = pictures(24, channels, 20, 26), torch.arange(24)
    options = plain(channels, scale=(0.1, 1.0), flip=0.5)
    views = MoreViews(14, **options, rotation=70)
    how, draws = views.draw(index, 2, 1), own(views, index, 2, 1)
    box = SimCLRViews(14, **options).boxes(how, 20, 26)
    sizes = torch.tensor([[20, 26]]).expand(24, 2)
    want = turned(images, index, box, sizes, draws.cos, draws.sin, how.flip, 14)
    assert views(images, index, 2)[1].equal(want.transpose(0, 1))
    degrees = torch.rad2deg(torch.atan2(draws.sin, draws.cos))
    assert float(degrees.abs().max()) <= 70.001


def test_a_turned_image_is_padded_and_then_cut() -> None:
    images, index = pictures(12, 3, 16, 16), torch.arange(12)
    views, turns = (MoreViews(16, **plain(padding=p, rotation=30)) for p in (3, 0))
    places, whole = own(views, index), F.pad(turns(images, index, 0)[0], (3,) * 4)
    for k, got in enumerate(views(images, index, 0)[0]):
        top, left = int(places.top[k]), int(places.left[k])
        assert got.equal(whole[k, :, top : top + 16, left : left + 16])


# Draws -----------------------------------------------------------------------------------------


def test_draws_are_as_often_as_they_are_said_to_be() -> None:
    views = MoreViews(
        32, vertical_flip=0.3, quarter_turns=True, rotation=20, padding=4, solarise=0.2
    )
    drawn = own(views, torch.arange(MANY), 1, 1)
    for share, column in ((0.3, drawn.vertical), (0.2, drawn.solarise)):
        assert float(column.mean()) == pytest.approx(share, abs=4 * math.sqrt(0.25 / MANY))
    for column, values in ((drawn.quarters, 4), (drawn.top, 9), (drawn.left, 9)):
        counts = torch.bincount(column.long(), minlength=values) / MANY
        assert len(counts) == values
        torch.testing.assert_close(counts, torch.full((values,), 1 / values), atol=0.015, rtol=0)
    degrees = torch.rad2deg(torch.atan2(drawn.sin, drawn.cos))
    even = torch.histc(degrees, 10, -20, 20) / MANY
    torch.testing.assert_close(even, torch.full((10,), 0.1), atol=0.015, rtol=0)
    columns = torch.stack([drawn.vertical, drawn.quarters, degrees, drawn.top, drawn.left])
    correlation = torch.corrcoef(torch.cat([columns, drawn.solarise[None]]).double())
    assert float(correlation.fill_diagonal_(0).abs().max()) < 5 / math.sqrt(MANY)


def test_views_and_epochs_have_draws_of_their_own() -> None:
    views, index = MoreViews(16, **ALL), torch.arange(200)
    one = views.draw(index, 0, 0).own
    for other in (views.draw(index, 0, 1), views.draw(index, 1, 0)):
        assert float((one == other.own).all(1).float().mean()) < 0.01
    both = views.draw(index.repeat(2), 0, torch.tensor([0, 1]).repeat_interleave(200)).own
    assert both[:200].equal(one)
    assert both[200:].equal(views.draw(index, 0, 1).own)


# Bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [ALL, WITHOUT_PADDING])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 24, 24), (1, 40, 17), (4, 60, 50)])
def test_a_sample_has_the_same_bits_in_any_batch(
    options: dict[str, Any], channels: int, height: int, width: int
) -> None:
    images, index = pictures(21, channels, height, width), torch.arange(21) * 5 + 2
    statistics = {"mean": (0.5,) * channels, "std": (0.3,) * channels}
    views = MoreViews(16, **statistics, **options, seed=2)
    everything = views(images, index, 4)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    shuffled = views(images[order], index[order], 4)
    for view in (0, 1):
        assert shuffled[view].equal(everything[view][order])
    for i in range(21):
        alone = views(images[i : i + 1], index[i : i + 1], 4)
        assert alone[0][0].equal(everything[0][i])
        assert alone[1][0].equal(everything[1][i])
        assert views.one(images[i : i + 1], index[i : i + 1], 4)[0].equal(everything[0][i])


@pytest.mark.parametrize("options", [ALL, WITHOUT_PADDING])
def test_images_of_many_sizes_are_made_as_if_each_were_alone(options: dict[str, Any]) -> None:
    images, index = pictures(9, 3, 30, 28), torch.arange(9)
    sizes = torch.tensor([[30, 28], [20, 21], [12, 28]] * 3)
    views = MoreViews(16, **options)
    together = views(images, index, 1, sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        alone = images[i : i + 1, :, :height, :width].contiguous()
        for got, want in zip(
            together, views(alone, index[i : i + 1], 1, sizes[i : i + 1]), strict=True
        ):
            assert got[i].equal(want[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bits_do_not_depend_on_the_runs_precision(dtype: torch.dtype) -> None:
    images, index = pictures(12, 3, 24, 20), torch.arange(12)
    for options in (ALL, WITHOUT_PADDING):
        views = MoreViews(16, **options)
        want = views(images, index, 1)
        torch.set_default_dtype(dtype)
        try:
            got = views(images, index, 1)
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            got = (*got, *views(images, index, 1))
        for one, other in zip(got, want * 2, strict=True):
            assert one.dtype == torch.float32
            assert one.equal(other)


@pytest.mark.parametrize("workers_cut", [False, True])
@pytest.mark.parametrize("options", [ALL, WITHOUT_PADDING, {"padding": 2}])
def test_views_ask_the_device_for_nothing(options: dict[str, Any], workers_cut: bool) -> None:
    """Tensors on `meta` have no numbers: whoever asks for one, as for the largest box, fails."""
    views = MoreViews(24, **options, mean=(0.5,) * 4, std=(0.5,) * 4)
    side = views.cut_size
    shape = (16, 2, 4, side, side) if workers_cut else (16, 4, 40, 44)
    images = torch.empty(shape, dtype=torch.uint8, device="meta")
    index = torch.empty(16, dtype=torch.int64, device="meta")
    sizes = torch.empty(16, 2, dtype=torch.int64, device="meta")  # of packed images
    for made in [views(images, index, 3)] + [views(images, index, 3, sizes)] * (not workers_cut):
        for view in made:
            assert (view.device.type, view.shape) == ("meta", (16, 4, 24, 24))


# Bad values ------------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any]]] = [
    ("views.vertical_flip", {"vertical_flip": 1.5}),
    ("views.vertical_flip", {"vertical_flip": True}),
    ("views.vertical_flip", {"vertical_flip": "often"}),
    ("views.solarise", {"solarise": -0.1}),
    ("views.solarise", {"solarise": math.nan}),
    ("views.quarter_turns", {"quarter_turns": 2}),
    ("views.rotation", {"rotation": 181}),
    ("views.rotation", {"rotation": -5}),
    ("views.rotation", {"rotation": "much"}),
    ("views.padding", {"padding": 2.5}),
    ("views.padding", {"padding": -1}),
    ("views.padding", {"padding": 16}),
    ("scale", {"padding": 4, "scale": (0.2, 1.0)}),
]


@pytest.mark.parametrize(("key", "bad"), BAD, ids=[str(bad) for _, bad in BAD])
def test_a_value_out_of_range_is_refused_by_its_key(key: str, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"data\.{key} is ") as caught:
        MoreViews(16, **bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "edge", [{"rotation": 180}, {"rotation": 0}, {"padding": 15}, {"solarise": 1}]
)
def test_values_at_the_edge_are_accepted(edge: dict[str, Any]) -> None:
    for view in MoreViews(16, **edge)(pictures(4, 3, 8, 9), torch.arange(4), 0):
        assert bool(view.isfinite().all())
