"""Features of a whole split: each image once, in order, from a frozen encoder."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import ranks
from torch import Tensor, nn

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.core.batch import UNLABELLED, EvaluationOutput
from simclr_pl.core.data.datamodule import Split
from simclr_pl.protocols import features
from simclr_pl.protocols.features import Features, FeatureWriter, collect, encode


@pytest.fixture(scope="module")
def data() -> ContrastiveDataModule:
    """Digits in batches that don't divide any split."""
    module = ContrastiveDataModule(batch_size=100)
    module.prepare_data()
    module.setup()
    return module


def small_encoder() -> nn.Module:
    """One whose features depend on its mode, and on the batch in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_encode_is_a_forward_pass_over_the_split_in_order(
    split: Split, data: ContrastiveDataModule
) -> None:
    encoder = small_encoder()
    got = encode(encoder, data, split)
    source: Any = getattr(data.splits, split)
    with torch.no_grad():
        expected = encoder.eval()(data.views.clean(source.images))
    assert got.index.equal(torch.arange(len(source)))
    assert got.labels.equal(source.labels)
    assert not got.features.requires_grad
    torch.testing.assert_close(got.features, expected, rtol=1e-5, atol=1e-6)


def test_labelled_images_alone_have_the_features_that_they_have_among_all(
    data: ContrastiveDataModule,
) -> None:
    """The validation holdout is unlabelled in train."""
    encoder = small_encoder()
    passed: list[int] = []
    handle = encoder.register_forward_hook(lambda _, x, __: passed.append(len(x[0])))
    some = encode(encoder, data, "train", labelled_only=True)
    handle.remove()
    whole = encode(encoder, data, "train")
    known = whole.labels != UNLABELLED
    assert 0 < int(known.sum()) < len(known)
    assert sum(passed) == int(known.sum())
    assert some.index.equal(whole.index[known])
    assert some.labels.equal(whole.labels[known])
    torch.testing.assert_close(some.features, whole.features[known], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_of_too_few_labelled_images_all_are_encoded(count: int) -> None:
    data = ContrastiveDataModule(batch_size=100)
    data.setup()
    labels = torch.full((len(data.splits.val),), UNLABELLED)
    labels[:count] = 3
    data.splits = data.splits._replace(val=data.splits.val.relabel(labels))
    assert encode(small_encoder(), data, "val", labelled_only=True).labels.equal(labels)


@pytest.mark.parametrize("training", [True, False])
def test_encode_leaves_the_encoder_as_it_was(training: bool, data: ContrastiveDataModule) -> None:
    encoder = small_encoder().train(training)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encode(encoder, data, "val")
    assert encoder.training == training
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


def test_predict_writes_what_encode_gives(tmp_path: Path) -> None:
    data = ContrastiveDataModule(batch_size=100, predict_split="test")
    model = SimCLR(optimizer="sgd")
    path = tmp_path / "deep" / "features.npz"
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[FeatureWriter(path)], logger=False, enable_progress_bar=False
    )
    trainer.predict(model, data, return_predictions=False)
    written = np.load(path)
    expected = encode(model.encoder, data, "test")
    assert sorted(written) == ["features", "index", "labels"]
    assert written["features"].dtype == np.float32
    np.testing.assert_allclose(written["features"], expected.features.numpy(), 1e-4, 1e-5)
    np.testing.assert_array_equal(written["labels"], expected.labels.numpy())
    np.testing.assert_array_equal(written["index"], np.arange(len(expected.index)))


# Several ranks -----------------------------------------------------------------------------------


def rows(index: Tensor) -> EvaluationOutput:
    """A row's features and label tell its index."""
    features = torch.stack([index.double(), index.double().sin()], 1)
    return EvaluationOutput(features=features, labels=index % 5, index=index)


def collected(shares: list[list[list[int]]], at_a_time: int = 8192) -> Features:
    features.GATHERED = at_a_time
    rank = dist.get_rank() if dist.is_initialized() else 0
    return collect([rows(torch.tensor(part)) for part in shares[rank]], torch.device("cpu"))


SHARES = [[[0, 1, 5]], [[2], [6, 7, 8, 9]], [[3, 4]]]


def in_order(got: Features) -> bool:
    expected = rows(torch.arange(10))
    return all(value.equal(expected[name]) for name, value in got._asdict().items())


def test_batches_are_put_in_the_order_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "GATHERED", features.GATHERED)  # given back afterwards
    alone = [[part for share in reversed(SHARES) for part in share]]
    assert in_order(collected(alone))
    assert in_order(collected(alone, 3))


@pytest.mark.ddp
@pytest.mark.parametrize("at_a_time", [8192, 1, 2])
def test_uneven_ranks_all_get_the_whole_split_once(at_a_time: int) -> None:
    everyone = ranks(3, collected, SHARES, at_a_time)
    assert [in_order(got) for got in everyone] == [True] * 3


def predicted(path: Path) -> None:
    """`predict` over two ranks, which share batches unevenly."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[FeatureWriter(path)],
        logger=False,
        enable_progress_bar=False,
    )
    data = ContrastiveDataModule(batch_size=35, predict_split="val")
    trainer.predict(SimCLR(optimizer="sgd", seed=0), data, return_predictions=False)


@pytest.mark.ddp
def test_predict_on_two_ranks_writes_each_image_once(tmp_path: Path) -> None:
    ranks(2, predicted, tmp_path / "features.npz")
    data = ContrastiveDataModule(batch_size=35)
    model = SimCLR(optimizer="sgd", seed=0)
    L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, limit_predict_batches=1
    ).predict(model, data)
    expected = encode(model.encoder, data, "val")
    written = np.load(tmp_path / "features.npz")
    np.testing.assert_array_equal(written["index"], np.arange(len(data.splits.val)))
    np.testing.assert_array_equal(written["labels"], expected.labels.numpy())
    np.testing.assert_allclose(written["features"], expected.features.numpy(), 1e-4, 1e-5)
