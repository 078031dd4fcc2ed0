"""Views of one's own: `data.views` as a class path, a function or an object."""

from pathlib import Path
from typing import Any

import datamodules
import pytest
import torch
from noise import write_images
from torch import Tensor

from simclr_pl import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule


class Shifted:
    """So many views, each a bit lighter than the one before."""

    def __init__(self, image_size: int, seed: int, count: int = 2) -> None:
        self.image_size, self.seed, self.count = image_size, seed, count

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, ...]:
        return tuple(images.float() + view + epoch for view in range(self.count))


class Brighter(SimCLRViews):
    """The paper's, and something behind them."""

    def forward(self, *args: Any, **options: Any) -> Any:
        return tuple(view + 1 for view in super().forward(*args, **options))


def twice(images: Tensor, index: Tensor, epoch: int, seed: int) -> list[Tensor]:
    return [images.float() + seed, images.float() - seed]


def ready(views: Any, **options: Any) -> ContrastiveDataModule:
    return datamodules.ready(views=views, **({"batch_size": 16, "num_workers": 0} | options))


def first_batch(data: ContrastiveDataModule) -> Any:
    return next(iter(data.splits.train.batches([torch.tensor([5, 3, 9])], 2, "views")))


@pytest.mark.parametrize(
    "views", [f"{__name__}.Shifted", Shifted, {"class_path": f"{__name__}.Shifted"}]
)
def test_a_class_is_made_with_what_its_constructor_names(
    views: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Shifted.__module__])
    data = ready(views, seed=4, image_size=8)
    made = data.make_views(first_batch(data))
    assert (data.makes_views.image_size, data.makes_views.seed) == (8, 4)
    pixels = data.splits.train.images[[5, 3, 9]].float()
    assert made.views.equal(torch.cat([pixels + 2, pixels + 3]))


def test_any_number_of_views_gets_labels_and_index_of_each() -> None:
    data = ready(Shifted(8, 0, count=4))
    batch = first_batch(data)
    made = data.make_views(batch)
    assert (made.per_image, len(made.views)) == (4, 12)
    assert made.index.tolist() == [5, 3, 9] * 4
    assert made.labels.equal(batch.labels.repeat(4))


def test_a_function_gets_what_it_names_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Shifted.__module__])
    data = ready(f"{__name__}.twice", seed=4)
    made = data.make_views(first_batch(data)).views.chunk(2)
    assert (made[0] - made[1]).unique().tolist() == [8]


def test_clean_images_are_the_papers_unless_there_are_own_ones() -> None:
    paper, own = ready(None), ready(Shifted)
    batch = first_batch(paper)
    want = paper.make_clean(batch, views=False).clean
    assert own.make_clean(batch, views=False).clean.equal(want)
    own.makes_views.clean = lambda images: images.float()
    assert own.make_clean(batch, views=False).clean.equal(batch.images.float())


def test_fine_tuning_crops_and_flips_as_the_paper_does() -> None:
    data = LabelledDataModule(1.0, batch_size=16)
    data.prepare_data()
    data.setup()
    assert type(data.views) is type(data.makes_views) is SimCLRViews


def test_of_image_files_the_views_are_subclasses_of_the_papers(tmp_path: Path) -> None:
    write_images(tmp_path, 12, 20, 30)
    options = {"dataset": "folder", "root": str(tmp_path), "image_size": 8}
    with pytest.raises(UserError, match=r"subclass of it, or pack the folder"):
        ready(Shifted, **options)
    data, paper = ready(Brighter, **options), ready(None, **options)
    batch = first_batch(paper)
    assert data.make_views(batch).views.equal(paper.make_views(batch).views + 1)


@pytest.mark.parametrize(
    ("views", "said"),
    [
        (lambda *a: a[0], r"gives a Tensor, but must give 2 float tensors \[3, C, S, S\]"),
        (lambda *a: (a[0], a[0]), r"gives torch.uint8 \[3, 1, 8, 8\], torch"),
        (lambda *a: 3 * (a[0].float(),), "say how many in an attribute 'count'"),
    ],
)
def test_what_is_no_views_is_refused_in_a_sentence(views: Any, said: str) -> None:
    data = ready(views)
    with pytest.raises(UserError, match=f"data.views: .*{said}"):
        data.make_views(first_batch(data))


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_the_papers_views_may_be_more_than_two(source: str, tmp_path: Path) -> None:
    write_images(tmp_path, 12, 20, 30)
    options = {"dataset": source, "root": str(tmp_path), "image_size": 8}
    two = ready(None, **options)
    four = ready({"class_path": "simclr", "init_args": {"count": 4}}, **options)
    made, wanted = four.make_views(first_batch(four)), two.make_views(first_batch(two))
    assert (made.per_image, len(made.views)) == (4, 12)
    assert made.views[:6].equal(wanted.views)
    assert len({view.numpy().tobytes() for view in made.views}) == 12
    loader = four.evaluation_loader("train", "both")
    both = four.make_clean(next(iter(loader)), views=True)
    assert both.views is not None
    assert len(both.views.views) == 4 * len(both.clean)
