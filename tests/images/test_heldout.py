"""The validation holdout of named images: files that come or go move hardly any other."""

import shutil
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import pixels, write_images
from photographs import fill

from simclr_pl import UserError
from simclr_pl.commands.pack.pack import pack
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.datasets import load
from simclr_pl.images.hashes import hashes
from simclr_pl.images.heldout import OLDER, HeldOut
from simclr_pl.images.splits import holdout
from simclr_pl.images.workers.images import ImageFiles

KEYS = [b"cat/1.png", b"\xe4.png"]


def noise(root: Path, classes: int = 3, images: int = 100) -> Path:
    """A folder of images that tell nothing of their class."""
    for label in range(classes):
        write_images(root / f"class{label}", images)
    return root


def held(root: Path, kept: HeldOut | None = None) -> set[bytes]:
    """Names of the validation images; no image of train that has a label is among them."""
    splits = load("folder", root, kept=kept)
    names, labels = splits.train.names, splits.train.labels.tolist()
    hidden = {n for n, label in zip(names or (), labels, strict=True) if label == UNLABELLED}
    assert hidden == set(splits.val.names or ())
    return hidden


# The rule -----------------------------------------------------------------------------------------


def test_a_hash_is_the_same_on_every_machine() -> None:
    known = [
        int.from_bytes(blake2b(b"-3/" + key, digest_size=8).digest(), "little") for key in KEYS
    ]
    assert hashes(KEYS, -3).tolist() == known
    assert hashes(KEYS, 0).tolist()[0] == 13099405131202437354


def test_a_tenth_of_each_class_has_the_smallest_hashes() -> None:
    labels = torch.tensor([0] * 25 + [UNLABELLED] * 30 + [2] * 4 + [1] * 36)
    names = [b"%d.png" % number for number in range(len(labels))]
    chosen = holdout(labels, 5, names)
    assert chosen.equal(chosen.unique())  # rising, each once
    keys = hashes(names, 5)
    for label, count in ((0, 2), (1, 4), (2, 1)):
        members = (labels == label).nonzero()[:, 0].tolist()
        smallest = sorted(members, key=lambda place: keys[place])[:count]
        assert sorted(smallest) == [i for i in chosen.tolist() if labels[i] == label]
    assert UNLABELLED not in labels[chosen]
    nothing_known = torch.full((30,), UNLABELLED)
    assert len(holdout(nothing_known, 5, names[:30])) == 3


def test_of_equal_hashes_the_name_decides_and_not_the_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simclr_pl.images.hashes.hashes", lambda keys, seed: np.zeros(3))
    names, labels = [b"c", b"a", b"b"], torch.zeros(3, dtype=torch.int64)
    assert holdout(labels, 0, names).tolist() == [1]
    assert holdout(labels, 0, names[::-1]).tolist() == [1]
    assert holdout(labels, 0, sorted(names)).tolist() == [0]


@pytest.mark.parametrize("count", [2, 15, 25, 40])
def test_an_image_that_comes_or_goes_moves_at_most_one_other_of_its_class(count: int) -> None:
    names = [b"%d/%d" % (label, number) for label in (0, 1) for number in range(count)]
    labels = torch.tensor([0, 1]).repeat_interleave(count)

    def chosen(without: int | None = None) -> set[bytes]:
        some = [place for place in range(len(names)) if place != without]
        found = holdout(labels[some], 0, [names[place] for place in some])
        return {names[some[place]] for place in found.tolist()}

    whole = chosen()
    for gone in range(count):
        moved = (whole ^ chosen(without=gone)) - {names[gone]}
        assert len(moved) <= 1
        assert all(name.startswith(b"0/") for name in moved)


def test_arrays_keep_the_rule_of_their_places() -> None:
    splits = load("digits", "unused", 3)
    assert splits.held is not None
    whole = splits.train.labels.clone()
    whole[splits.held] = splits.val.labels
    assert splits.held.equal(holdout(whole, 3))


def test_a_packed_set_has_the_split_of_its_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        fill(tmp_path / "images" / name, 20, 50 * number)
    pack(str(tmp_path / "images"), str(tmp_path / "set"), num_workers=0)
    folder, packed = load("folder", tmp_path / "images", 4), load("packed", tmp_path / "set", 4)
    assert list(folder.val.names or ()) == list(packed.val.names or ())
    assert len(folder.val) == 4


# A run's ------------------------------------------------------------------------------------------


def test_a_file_that_goes_takes_no_validation_label_into_train(tmp_path: Path) -> None:
    root = noise(tmp_path / "images")
    before = held(root)
    splits = load("folder", root)
    kept = HeldOut.of(splits, 0)
    assert kept.hashes is not None
    assert (len(before), kept.key, kept.hashes.nbytes) == (30, "name", 240)
    gone = next(
        root / f"class1/{i:03d}.png" for i in range(100) if b"class1/%03d.png" % i not in before
    )
    gone.unlink()
    assert len(before & held(root)) >= 29  # even by the rule alone
    assert held(root, kept) == before
    for number in range(100, 140):
        shutil.copy(root / "class2" / "000.png", root / "class2" / f"{number}.png")
    assert held(root, kept) == before  # what is new is trained on


def test_images_that_were_held_out_and_are_gone_are_counted(tmp_path: Path) -> None:
    root = noise(tmp_path / "images", images=20)
    splits = load("folder", root)
    kept, names = HeldOut.of(splits, 0), splits.val.names or ()
    (root / str(names[0], "ascii")).unlink()
    now = load("folder", root, kept=kept)
    assert kept.missing(splits).tolist() == []
    assert kept.missing(now).tolist() == hashes(names[:1], 0).tolist()
    assert len(now.val) == 5
    for name in names[1:]:
        (root / str(name, "ascii")).rename(root / f"class0/x{str(name, 'ascii').replace('/', '')}")
    with pytest.raises(UserError, match="none of the run's 6 validation images is in these data: "):
        load("folder", root, kept=kept)


def test_a_split_of_ones_own_is_a_runs_for_good(tmp_path: Path) -> None:
    for split in ("train", "val"):
        noise(tmp_path / split, images=10)
    with_val = HeldOut.of(load("folder", tmp_path), 0)
    assert with_val.key == "own"
    (tmp_path / "val" / "class0" / "000.png").rename(tmp_path / "val" / "class0" / "new.png")
    gone = with_val.missing(load("folder", tmp_path, kept=with_val))
    assert gone.tolist() == hashes([b"class0/000.png"], 0).tolist()
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(
        UserError, match="the data set had one of its own, and now it has none: put"
    ):
        load("folder", tmp_path, kept=with_val)
    without = HeldOut.of(load("folder", tmp_path), 0)
    (tmp_path / "test").rename(tmp_path / "val")
    with pytest.raises(UserError, match="a part of train was held out, and now it has one: put"):
        load("folder", tmp_path, kept=without)


def test_a_run_of_an_older_version_draws_by_places(tmp_path: Path) -> None:
    root = noise(tmp_path / "images", images=20)
    splits = load("folder", root, 7, OLDER)
    labels = torch.arange(3).repeat_interleave(20)
    assert splits.held is not None
    assert splits.held.equal(holdout(labels, 7))
    assert not splits.held.equal(holdout(labels, 7, splits.train.names))
    # From then on they are known by their names.
    kept = HeldOut.of(splits, 7)
    assert isinstance(splits.val, ImageFiles)
    assert held(root, kept) == set(splits.val.names or ())


def test_places_are_kept_of_images_without_names(tmp_path: Path) -> None:
    images = pixels(60, 8, 8)
    labels = np.arange(60) % 2
    np.savez(tmp_path / "a.npz", train_images=images[:50], train_labels=labels[:50])
    np.savez(tmp_path / "b.npz", train_images=images, train_labels=labels)
    before = load("npz", tmp_path / "a.npz")
    kept = HeldOut.of(before, 0)
    now = load("npz", tmp_path / "b.npz", kept=kept)
    assert before.held is not None
    assert now.held is not None
    assert (kept.key, now.held.tolist()) == ("place", before.held.tolist())
    assert (now.train.labels[50:] != UNLABELLED).all()
