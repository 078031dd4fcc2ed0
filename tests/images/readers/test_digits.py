"""Digits: split once, a tenth held out."""

import numpy as np
import torch
from arrays import array, counts

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.datasets import load
from simclr_pl.images.splits import HOLDOUT


def test_digits_are_sklearns_split_into_disjoint_balanced_train_and_test() -> None:
    from sklearn.datasets import load_digits

    splits = load("digits", "unused")
    train, test = array(splits.train), array(splits.test)
    assert splits.classes == tuple("0123456789")
    assert len(train) + len(test) == 1797
    assert 0.18 < len(test) / 1797 < 0.2
    assert train.images.shape[1:] == (1, 8, 8)
    bunch = load_digits()
    per_class = np.bincount(bunch.target)
    for got, total in zip(counts(test.labels, 10), per_class, strict=True):
        assert abs(got - 0.19 * total) <= 1
    # Together they are the bunch, each image once: 16 levels spread over 0 to 255.
    everything = torch.cat([train.images, test.images]).flatten(1)
    want = torch.from_numpy(np.rint(bunch.data * 255 / 16).astype(np.uint8))
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, want.numpy()))
    # And each with its own label.
    label_of = {bytes(row): label for row, label in zip(want.numpy(), bunch.target, strict=True)}
    for image, label in zip(test.images.flatten(1).numpy(), test.labels.tolist(), strict=True):
        assert label_of[bytes(image)] == label


def test_digits_hold_out_a_tenth_of_each_class_and_hide_its_labels() -> None:
    splits = load("digits", "unused")
    train, val = array(splits.train), array(splits.val)
    hidden = train.labels == UNLABELLED
    assert torch.equal(train.images[hidden], val.images)
    held, kept = counts(val.labels, 10), counts(train.labels, 10)
    assert int(hidden.sum()) == len(val) == sum(held)
    for h, k in zip(held, kept, strict=True):
        assert abs(h - HOLDOUT * (h + k)) <= 0.5
    assert UNLABELLED not in val.labels


def test_the_split_seed_changes_val_and_nothing_else() -> None:
    first, again, other = (load("digits", "unused", seed) for seed in (0, 0, 1))
    for a, b in zip(first[:3], again[:3], strict=True):
        assert torch.equal(array(a).images, array(b).images)
        assert torch.equal(array(a).labels, array(b).labels)
    assert torch.equal(array(first.test).images, array(other.test).images)
    assert torch.equal(array(first.train).images, array(other.train).images)
    assert not torch.equal(array(first.val).images, array(other.val).images)
