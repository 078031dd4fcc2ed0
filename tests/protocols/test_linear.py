"""Linear evaluation: the heads against scikit-learn, the protocol, what must never be chosen."""

import numpy as np
import pytest
import torch
from labelled_rows import QUICK, blobs, digits, evaluate
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from simclr_pl import UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.images.groups import Groups
from simclr_pl.images.readers import reader
from simclr_pl.images.splits import holdout
from simclr_pl.protocols import linear
from simclr_pl.protocols.features import Features
from simclr_pl.protocols.knn import evaluate_knn
from simclr_pl.protocols.linear import Heads, Settings, fit_linear, judge, train_heads
from simclr_pl.protocols.logistic import evaluate_logistic
from simclr_pl.protocols.scoring import Rows, best_first, choosing_parts, labelled

# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1e-2, 1e-1])
@pytest.mark.long
def test_a_head_ends_where_scikit_learn_s_logistic_regression_does(decay: float) -> None:
    """The same loss: C is the inverse of decay times rows."""
    train, test = digits()
    recipe = Settings(steps=3000)
    heads = train_heads(lambda _: train.features, train.labels, 10, [(0.3, decay)], recipe)
    scaler = StandardScaler().fit(train.features.double())
    model = LogisticRegression(C=1 / (decay * len(train.labels)), max_iter=2000)
    model.fit(scaler.transform(train.features.double()), train.labels)
    theirs = torch.from_numpy(model.predict_proba(scaler.transform(test.features.double())))
    ours = heads.logits(test.features)[:, :, 0].softmax(1)
    assert float((ours - theirs).abs().max()) < 0.02
    agree = ours.argmax(1) == theirs.argmax(1)
    assert float(agree.double().mean()) > 0.997


def test_heads_of_a_grid_are_those_trained_alone() -> None:
    rows = blobs(300, 0)
    grid = QUICK.grid
    together = train_heads(lambda _: rows.features, rows.labels, 3, grid, QUICK)
    for place, pair in enumerate(grid):
        alone = train_heads(lambda _: rows.features, rows.labels, 3, [pair], QUICK)
        torch.testing.assert_close(together.weight[:, :, [place]], alone.weight)
        torch.testing.assert_close(together.bias[:, [place]], alone.bias)


def test_a_head_follows_pytorch_s_nesterov_sgd() -> None:
    """Steps, momentum, decay (not of the bias) and cosine, against torch.optim.

    Steps divided by the curvature are steps of weights in units of its square root, taken by a
    module that sees features along their principal directions, in the same units.
    """
    rows = blobs(64, 0)
    recipe = Settings(epochs=7, steps=1, batch_size=16)
    heads = train_heads(lambda _: rows.features, rows.labels, 3, [(0.5, 0.01)], recipe)
    std, mean = torch.std_mean(rows.features, 0, correction=0)
    std[-1] = torch.inf
    x = (rows.features - mean) / std
    variance, directions = torch.linalg.eigh(torch.cov(x.T, correction=0))
    unit = (variance + 1e-3 * variance.max() + 0.01).sqrt()
    module = torch.nn.Linear(6, 3)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    peak = 0.5 * 16 / 256
    sgd = torch.optim.SGD(module.parameters(), lr=peak, momentum=0.9, nesterov=True)
    for step in range(28):
        order = linear.epoch_order(0, step // 4, 64)[16 * (step % 4) : 16 * (step % 4) + 16]
        for group in sgd.param_groups:
            group["lr"] = peak * 0.5 * (1 + np.cos(np.pi * step / 28))
        logits = module(x[order] @ directions / unit)
        loss = torch.nn.functional.cross_entropy(logits, rows.labels[order])
        loss = loss + 0.01 / 2 * (module.weight / unit).square().sum()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    weight = module.weight.detach() / unit @ directions.T
    torch.testing.assert_close(heads.weight[:, :, 0].T, weight)
    torch.testing.assert_close(heads.bias[:, 0], module.bias.detach())


def test_features_that_hardly_vary_along_most_directions_are_learned() -> None:
    """Two classes that differ along the faintest of 30 correlated features' directions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    hidden = torch.randn(2000, 30, generator=generator)
    hidden[:, -1] = 2.0 * labels - 1 + 0.3 * hidden[:, -1]
    mixing = torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q
    features = hidden * torch.logspace(0, -2, 30) @ mixing
    rows = Rows(features, labels)
    assert evaluate(rows.at(torch.arange(1000)), rows.at(torch.arange(1000, 2000))).top1 > 0.99


def test_a_collapsed_encoder_s_heads_say_what_is_most_frequent() -> None:
    labels = torch.arange(100) % 4 // 3
    rows = Rows(torch.ones(100, 5), labels)
    assert evaluate(rows, rows, classes=2).top1 == 0.75


def test_small_sets_get_more_epochs() -> None:
    assert Settings(epochs=30, steps=1000, batch_size=512).plan(1312) == (334, 3)
    assert Settings(epochs=30, steps=1000, batch_size=512).plan(50_000) == (30, 98)
    assert Settings(epochs=3, steps=0).plan(10) == (3, 1)


def test_no_global_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    train, test = blobs(90, 0), blobs(90, 1)
    first = evaluate(train, test)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(9)
    assert evaluate(train, test) == first


# The protocol -------------------------------------------------------------------------------------


def test_the_choice_is_made_on_a_tenth_of_train_and_the_scored_split_has_no_part_in_it() -> None:
    train, test = blobs(600, 0), blobs(300, 1)
    score = evaluate(train, test)
    fits, chooses = choosing_parts(train.labels, QUICK.seed)
    fitted = train.at(fits)
    heads = train_heads(lambda _: fitted.features, fitted.labels, 3, QUICK.grid, QUICK)
    best = best_first(*judge(heads, train.at(chooses)))[0]
    assert tuple(score.chosen.values()) == QUICK.grid[best]
    final = train_heads(lambda _: train.features, train.labels, 3, [QUICK.grid[best]], QUICK)
    right = final.logits(test.features)[:, :, 0].argmax(1) == test.labels
    assert score.top1 == pytest.approx(float(right.double().mean()))
    spoilt = test._replace(labels=(test.labels + 1) % 3)
    assert evaluate(train, spoilt).chosen == score.chosen


def test_the_parts_that_fit_and_choose_are_all_of_train_balanced_and_seeded() -> None:
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 20)
    fits, chooses = choosing_parts(labels, 4)
    assert chooses.equal(holdout(labels, 4))
    assert torch.cat([fits, chooses]).sort().values.equal(torch.arange(170))
    assert labels[chooses].bincount().tolist() == [10, 5, 2]
    assert not choosing_parts(labels, 5)[1].equal(chooses)


def test_groups_are_whole_in_the_tenth_that_chooses_and_it_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_said", set())
    # Each group has a place of its own, where its labels say nothing of other groups': a head
    # without decay knows its own groups by heart, and is the best where they choose.
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(40).repeat_interleave(5)
    labels = torch.randint(2, (40,), generator=generator)[ids]
    x = torch.randn(40, 60, generator=generator)[ids]
    groups = Groups(ids, [b"g%d" % g for g in range(40)], 40)
    fits, chooses = choosing_parts(labels, 1, groups)
    assert not set(ids[fits].tolist()) & set(ids[chooses].tolist())
    assert torch.cat([fits, chooses]).sort().values.equal(torch.arange(200))
    assert capsys.readouterr().out == (
        "hyper-parameters are chosen on whole groups of train (4 groups: 20 of 200 labelled "
        "images, 10.0%), not balanced by class\n"
    )
    recipe = QUICK._replace(seed=1)
    apart, mixed = (fit_linear(lambda _: x, labels, 2, recipe, groups=g) for g in (groups, None))
    heads = train_heads(lambda _: x[fits], labels[fits], 2, recipe.grid, recipe)
    best = best_first(*judge(heads, Rows(x, labels).at(chooses)))[0]
    assert tuple(apart.chosen.values()) == recipe.grid[best]
    assert apart.chosen != mixed.chosen
    for evaluated in (evaluate_knn, evaluate_logistic):
        monkeypatch.setattr(reader, "_said", set())
        evaluated(Rows(x, labels, groups), Rows(x, labels), 2, 1)
        assert "whole groups" in capsys.readouterr().out


def test_a_class_in_one_group_alone_cannot_be_chosen_on() -> None:
    labels = torch.tensor([0] * 5 + [1] * 5)
    with pytest.raises(UserError, match="at least 2 classes with labelled images of 2 groups each"):
        choosing_parts(labels, 0, Groups(labels, [b"a", b"b"], 2))


def test_augmented_features_are_asked_for_anew_in_each_epoch() -> None:
    train, test = blobs(300, 0), blobs(300, 1)
    asked: list[int] = []

    def source(epoch: int) -> Tensor:
        asked.append(epoch)
        return train.features * (1 + 0.01 * epoch)

    recipe = QUICK._replace(steps=0, epochs=4)
    fit_linear(source, train.labels, 3, recipe).score(test)
    assert asked == [0, 1, 2, 3, 1, 2, 3]  # to choose, and to train again


def test_the_head_of_augmented_features_is_chosen_on_clean_ones() -> None:
    train, test = blobs(300, 0), blobs(300, 1)
    recipe = QUICK._replace(steps=0, epochs=4)
    fits, chooses = choosing_parts(train.labels, recipe.seed)

    def source(epoch: int) -> Tensor:  # of crops that show little of their image
        noise = torch.randn(train.features.shape, generator=torch.Generator().manual_seed(epoch))
        return train.features * 0.1 + noise

    heads = train_heads(lambda e: source(e)[fits], train.labels[fits], 3, recipe.grid, recipe)
    crops = Rows(source(0), train.labels)
    orders = [best_first(*judge(heads, rows.at(chooses))) for rows in (train, crops)]
    assert orders[0][0] != orders[1][0]
    score = fit_linear(source, train.labels, 3, recipe, train.features).score(test)
    assert tuple(score.chosen.values()) == recipe.grid[orders[0][0]]


def test_a_head_that_is_no_number_has_nothing_right() -> None:
    rows = Rows(torch.ones(6, 2), torch.tensor([0, 0, 1, 1, 0, 2]))
    weight = torch.zeros(2, 3, 3)
    weight[:, :, 1], weight[:, 1, 2] = torch.nan, torch.nan  # all classes of one, one of another
    heads = Heads(weight, torch.zeros(3, 3), torch.zeros(2), torch.ones(2))
    top1, loss = judge(heads, rows)
    assert top1.tolist() == [0.5, 0, 0]
    assert loss.isfinite().tolist() == [True, False, False]


# What goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decays", [(0.0, 1e4), (1e4, 0.0)])
def test_heads_that_diverge_are_never_chosen(decays: tuple[float, ...]) -> None:
    recipe = QUICK._replace(learning_rates=(0.1, 100.0), weight_decays=decays)
    train, test = blobs(600, 0, apart=3), blobs(300, 1, apart=3)
    heads = train_heads(lambda _: train.features, train.labels, 3, recipe.grid, recipe)
    finite = heads.weight.isfinite().all(0).all(0).tolist()
    assert finite == [pair != (100.0, 1e4) for pair in recipe.grid]
    score = evaluate(train, test, recipe)
    assert score.chosen["weight_decay"] == 0
    assert score.top1 > 0.9


def test_a_grid_of_which_all_diverge_is_a_sentence() -> None:
    recipe = QUICK._replace(learning_rates=(100.0,), weight_decays=(1e4,))
    with pytest.raises(UserError, match="every head diverged, at learning rates from 100: give"):
        evaluate(blobs(90, 0), blobs(90, 1), recipe)


def test_a_head_that_diverges_on_all_of_train_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = blobs(300, 0), blobs(300, 1)
    wanted = evaluate(train, test).chosen
    original = linear.train_heads

    def diverging(*args: object) -> Heads:
        heads = original(*args)  # type: ignore[arg-type]
        if args[3] == [tuple(wanted.values())]:
            heads.weight.fill_(torch.nan)
        return heads

    monkeypatch.setattr(linear, "train_heads", diverging)
    score = evaluate(train, test)
    assert score.chosen != wanted
    assert score.top1 > 0.5


def test_candidates_go_by_top1_then_loss_and_without_the_diverged() -> None:
    top1 = torch.tensor([0.5, 0.9, 0.9, 1.0, 0.7])
    loss = torch.tensor([0.1, 0.3, 0.2, torch.nan, torch.inf])
    assert best_first(top1, loss) == [2, 1, 0]


def test_constant_features_are_worth_chance() -> None:
    constant = Rows(torch.full((300, 4), 3.3), torch.arange(300) % 3)
    assert evaluate(constant, constant).top1 == pytest.approx(1 / 3)
    assert evaluate_logistic(constant, constant, 3, 0).top1 == pytest.approx(1 / 3)


def test_unlabelled_rows_are_dropped() -> None:
    rows = blobs(60, 0)
    mixed = Features(
        torch.cat([rows.features, rows.features * torch.nan]),
        torch.cat([rows.labels, torch.full((60,), UNLABELLED)]),
        torch.arange(120),
    )
    kept = labelled(mixed, "train")
    assert kept.features.equal(rows.features)
    assert kept.labels.equal(rows.labels)


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (torch.zeros(4, 2), torch.full((4,), UNLABELLED), "train split has no labels"),
        (torch.full((4, 2), torch.nan), torch.arange(4), "train split are not finite"),
        (torch.full((4, 2), torch.inf), torch.arange(4), "train split are not finite"),
    ],
)
def test_features_that_cannot_be_used_are_a_sentence(
    features: Tensor, labels: Tensor, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        labelled(Features(features, labels, torch.arange(4)), "train")


@pytest.mark.parametrize("labels", [[0] * 20, [0, 1], [3, 3, 3, 1]])
def test_too_few_labels_to_choose_on_are_a_sentence(labels: list[int]) -> None:
    with pytest.raises(UserError, match="at least 2 classes with 2 labelled images each"):
        choosing_parts(torch.tensor(labels), 0)
