"""What pictures of features say: protocol, split, epoch, seed, and how many of how many."""

from pathlib import Path

import pytest
import torch
from figures import texts
from noise import write_images

from simclr_pl.commandline.call import data_of
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.pictures import encoded_sample as snapshots
from simclr_pl.pictures.encoded_sample import Snapshot, take_snapshot
from simclr_pl.pictures.features import draw_confusion, draw_map, draw_neighbours, draw_similarities
from simclr_pl.pictures.map import flatten
from simclr_pl.pictures.views import displayable, draw_views
from simclr_pl.protocols.features import Features
from simclr_pl.run.directory import RunDirectory


@pytest.fixture(scope="module")
def digits(source: Path) -> Snapshot:
    """What the encoder of a finished run makes of its data."""
    directory = RunDirectory(source)
    return take_snapshot(directory, data_of([directory.config]))


def test_titles_say_protocol_split_epoch_and_seed(digits: Snapshot) -> None:
    for draw in (draw_neighbours, draw_confusion, draw_map, draw_similarities):
        text = texts(draw(digits))
        assert "digits" in text
        assert "epoch 2 (step 4), seed 0" in text
        assert "val images" in text
    assert "k = 20, cosine, temperature 0.07" in texts(draw_confusion(digits))


def test_confusions_are_those_of_knn_by_definition(digits: Snapshot) -> None:
    val, train = (
        torch.nn.functional.normalize(part.features, dim=1) for part in (digits.val, digits.train)
    )
    right = 0
    for feature, label in zip(val, digits.val.labels.tolist(), strict=True):
        similarity = train @ feature
        votes = torch.zeros(10)
        for place in similarity.argsort(descending=True)[:20].tolist():
            votes[digits.train.labels[place]] += torch.exp(similarity[place] / 0.07)
        right += int(votes.argmax()) == label
    assert f"top-1 {right / len(val):.3f}" in texts(draw_confusion(digits))


def test_right_and_wrong_neighbours_differ_by_sign_and_frame(digits: Snapshot) -> None:
    def labelled(part: Features, label: int) -> Features:
        return part._replace(labels=torch.full_like(part.labels, label))

    for its, sign, solid in ((3, "\u2713 3", True), (4, "\u2717 4", False)):
        shown = digits._replace(train=labelled(digits.train, its), val=labelled(digits.val, 3))
        axes = draw_neighbours(shown, images=4, k=2).axes
        neighbours = [axis for place, axis in enumerate(axes) if place % 3]
        assert all(axis.get_title().startswith(sign) for axis in neighbours)
        assert all((axis.spines["left"].get_linestyle() == "-") == solid for axis in neighbours)


def test_large_splits_are_sampled_and_say_so(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MOST_TRAIN", 200)
    monkeypatch.setattr(snapshots, "MOST_VAL", 50)
    directory = RunDirectory(source)
    few = take_snapshot(directory, data_of([directory.config]))
    assert few.share("train") == "200 of 1,312 labelled train images"
    assert few.share("val") == "50 of 146 val images"
    assert few.projections.shape == (2, 50, 128)
    assert "50 of 146 val images" in texts(draw_map(few))
    everything = few.data.splits.val.labels
    assert torch.equal(few.val.labels, everything[few.val.index])


def test_images_that_cannot_be_read_are_in_no_picture(tmp_path: Path) -> None:
    for name in "ab":
        write_images(tmp_path / name, 60, 20, 20)
    data = ContrastiveDataModule("folder", str(tmp_path), on_bad_image="skip", num_workers=0)
    (tmp_path / "a" / "040.png").write_bytes(b"")
    data.setup()
    few = snapshots.snap(Flat(), data, "now", (200, 200), quiet=True)
    assert few is not None
    both = ((few.train, data.splits.train), (few.val, data.splits.val))
    assert sum(len(part.index) for part, _ in both) == 119
    for part, source in both:
        assert torch.equal(part.labels, source.labels[part.index])
        assert len(part.features) == len(part.index)
    assert len(draw_views(data, images=120, epochs=1).axes) == 3 * 119


class Flat(torch.nn.Module):
    """Features that are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * images.flatten(1)


def test_many_classes_are_drawn_in_part_and_it_is_said(digits: Snapshot) -> None:
    count = len(digits.val.labels)
    names = tuple(f"a class with the number {i}" for i in range(60))
    data = digits.data
    before = data.splits
    data.splits = before._replace(classes=names)
    try:
        many = digits._replace(val=digits.val._replace(labels=torch.arange(count) % 60))
        assert "40 more classes in gray" in texts(draw_map(many))
        assert max(draw_confusion(many).get_size_inches()) < 15
    finally:
        data.splits = before


@pytest.mark.parametrize(
    "features", [torch.ones(20, 5), torch.randn(3, 1)], ids=["collapsed", "few"]
)
def test_maps_of_features_without_structure_are_finite(features: torch.Tensor) -> None:
    for flat in flatten(features):
        assert flat.points.shape == (len(features), 2)
        assert flat.points.isfinite().all()


def test_images_of_any_number_of_channels_can_be_shown() -> None:
    for channels, shape in ((1, (8, 8)), (2, (8, 8)), (3, (8, 8, 3)), (5, (8, 8))):
        data = ContrastiveDataModule("digits")
        data.mean = data.std = (0.5,) * channels
        (shown,) = displayable(torch.zeros(1, channels, 8, 8), data)
        assert shown.shape == shape
        assert (shown == 0.5).all()
