"""Logistic regression by L-BFGS: against our own heads, and the protocol by scikit-learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from labelled_rows import blobs, digits, evaluate, pixels_of
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from simclr_pl import ContrastiveDataModule
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.model.encoder import EncoderSpec, build_encoder
from simclr_pl.images.readers.fashion_mnist import FASHION_DEBIAN
from simclr_pl.protocols.features import encode
from simclr_pl.protocols.linear import Settings
from simclr_pl.protocols.logistic import evaluate_logistic
from simclr_pl.protocols.scoring import Rows, choosing_parts, labelled


@pytest.mark.long
def test_both_solvers_agree_on_digits() -> None:
    train, test = digits()
    ours = evaluate(train, test, Settings(), classes=10)
    theirs = evaluate_logistic(train, test, 10, 0)
    assert ours.top1 == pytest.approx(theirs.top1, abs=0.004)  # one image of 339
    assert ours.top1 > 0.95


@pytest.mark.data
@pytest.mark.long
def test_both_solvers_agree_on_fashion_mnist_to_a_third_of_a_point() -> None:
    data = ContrastiveDataModule("fashion_mnist", root=str(FASHION_DEBIAN), seed=0)
    data.prepare_data()
    data.setup()
    train, test = pixels_of(data)
    train = train.at(torch.arange(5000))
    # Of the same strength: on 500 images alone two choices would differ by more.
    ours = evaluate(train, test, Settings(weight_decays=(0.02,)), classes=10)
    theirs = evaluate_logistic(train, test, 10, 0, strengths=(1 / (0.02 * 5000),))
    assert ours.top1 == pytest.approx(theirs.top1, abs=0.003)
    assert ours.top1 > 0.8


def of_pixels(data: ContrastiveDataModule) -> tuple[Rows, Rows]:
    """Their 50 principal components."""
    train, test = (part.at(torch.arange(10_000)) for part in pixels_of(data))
    mean = train.features.mean(0)
    axes = torch.linalg.svd(train.features - mean, full_matrices=False).Vh[:50].T
    return tuple(Rows((part.features - mean) @ axes, part.labels) for part in (train, test))  # type: ignore[return-value]


def of_an_untrained_encoder(data: ContrastiveDataModule) -> tuple[Rows, Rows]:
    """A small ResNet's 128 features: they overlap, and hardly vary from image to image."""
    torch.manual_seed(0)
    spec = EncoderSpec("resnet10t", 1, 28, "auto", {"channels": [8, 16, 32, 128]})
    encoder = build_encoder(spec).module
    train = data.splits.train
    known = (train.labels != UNLABELLED).nonzero()[:10_000, 0]
    data.splits = data.splits._replace(train=train.select(known))
    return tuple(labelled(encode(encoder, data, s), s) for s in ("train", "test"))  # type: ignore[return-value]


def scikit_learn(train: Rows, test: Rows, seed: int) -> float:
    """The protocol once more, by scikit-learn alone but for the tenth that chooses."""
    x, y = train.features.double().numpy(), train.labels.numpy()
    fits, chooses = (part.numpy() for part in choosing_parts(train.labels, seed))

    def fitted(rows: np.ndarray, strength: float) -> Pipeline:
        model = LogisticRegression(C=strength, max_iter=3000)
        return make_pipeline(StandardScaler(), model).fit(x[rows], y[rows])

    strengths = np.logspace(-4, 2, 13)
    top1 = [fitted(fits, c).score(x[chooses], y[chooses]) for c in strengths]
    best = fitted(np.arange(len(y)), strengths[int(np.argmax(top1))])
    return float(best.score(test.features.double().numpy(), test.labels.numpy()))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("features", [of_pixels, of_an_untrained_encoder])
def test_the_protocol_agrees_with_scikit_learn_s_to_a_third_of_a_point(
    features: Callable[[ContrastiveDataModule], tuple[Rows, Rows]],
) -> None:
    """The mean of three seeds: each chooses on a thousand images, which say it to a point."""
    data = ContrastiveDataModule("fashion_mnist", root=str(FASHION_DEBIAN), batch_size=500, seed=0)
    data.prepare_data()
    data.setup()
    train, test = features(data)
    ours = [evaluate(train, test, Settings(seed=seed), classes=10).top1 for seed in range(3)]
    theirs = [scikit_learn(train, test, seed) for seed in range(3)]
    print(f"ours {ours}, scikit-learn's {theirs}")
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.003)
    assert np.mean(ours) > 0.75


def test_l_bfgs_chooses_its_strength_on_the_same_tenth() -> None:
    train, test = blobs(600, 0), blobs(300, 1)
    score = evaluate_logistic(train, test, 3, 0, strengths=(1e-3, 1.0))
    fits, chooses = choosing_parts(train.labels, 0)
    scaler = StandardScaler().fit(train.features[fits].double())
    found = {}
    for strength in (1e-3, 1.0):
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(scaler.transform(train.features[fits].double()), train.labels[fits])
        x = scaler.transform(train.features[chooses].double())
        found[strength] = model.score(x, train.labels[chooses])
    assert found[score.chosen["inverse_l2_strength"]] == max(found.values())


def test_l_bfgs_knows_classes_that_train_lacks() -> None:
    train = blobs(300, 0)
    test = Rows(train.features, torch.where(train.labels == 2, 4, train.labels))
    score = evaluate_logistic(train, test, 6, 0)
    assert score.top1 < 2 / 3
    assert score.top5 is not None
    assert score.top5 <= 2 / 3 + 1e-9  # the class of a third of them was never seen
