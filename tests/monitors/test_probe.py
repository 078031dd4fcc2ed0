"""The online probe: what it learns, from which rows, and which samples its accuracies count."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import ranks
from torch import Tensor, nn

from simclr_pl import ContrastiveDataModule, OnlineProbe, UserError
from simclr_pl.core.batch import UNLABELLED, EvaluationOutput, StepOutput

CLASSES, WIDTH = 4, 6


class Bench:
    """A probe between a trainer that knows the classes and a module that notes what is logged."""

    def __init__(self, classes: int = CLASSES, **options: Any) -> None:
        self.probe = OnlineProbe(**({"learning_rate": 0.05} | options))
        self.logged: dict[str, float] = {}
        self.trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(num_classes=classes))
        self.module: Any = SimpleNamespace(log=self._log)
        self.probe.setup(self.trainer, self.module, "fit")

    def _log(self, name: str, value: Any, **_: Any) -> None:
        self.logged[name] = float(value)

    def train(self, views: Tensor, labels: Tensor) -> None:
        """One step; `views` holds the features of both views, `[2, B, D]`."""
        output = {"features": views.flatten(0, 1), "labels": labels.repeat(2)}
        self.probe.on_train_batch_end(self.trainer, self.module, step_output(output), None, 0)

    def train_epoch_end(self) -> dict[str, float]:
        self.probe.on_train_epoch_end(self.trainer, self.module)
        return self.logged

    def score(self, features: Tensor, labels: Tensor, split: str = "val") -> None:
        output = EvaluationOutput(features=features, labels=labels, index=torch.arange(len(labels)))
        self.trainer.testing = split == "test"
        hook = (
            self.probe.on_test_batch_end if split == "test" else self.probe.on_validation_batch_end
        )
        hook(self.trainer, self.module, output, None, 0)

    def epoch_end(self, split: str = "val") -> dict[str, float]:
        self.trainer.testing = split == "test"
        hook = (
            self.probe.on_test_epoch_end if split == "test" else self.probe.on_validation_epoch_end
        )
        hook(self.trainer, self.module)
        return self.logged

    @property
    def weights(self) -> Tensor:
        """Weights and biases in one matrix."""
        head = self.probe.head
        assert head is not None
        return torch.cat([head.weight, head.bias[:, None]], 1).detach().clone()


def step_output(known: dict[str, Tensor]) -> StepOutput:
    nothing = torch.zeros(0)
    return StepOutput(
        loss=nothing,
        projections=nothing,
        positive_rank=nothing,
        chance=None,
        features=known["features"],
        labels=known["labels"],
    )


def draw(rows: int, seed: int = 0, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Features of two views around each class's own direction, `[2, B, D]`, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    noise = torch.randn(2, rows, WIDTH, generator=generator, dtype=torch.float64)
    return 3 * F.one_hot(labels, WIDTH) + 0.3 * noise, labels


def some_unlabelled(labels: Tensor) -> Tensor:
    return labels.where(torch.arange(len(labels)) % 3 != 1, UNLABELLED)


# Learning ----------------------------------------------------------------------------------------


def test_separable_classes_are_learnt() -> None:
    bench = Bench()
    for step in range(60):
        bench.train(*draw(16, seed=step))
        if step == 0:
            assert bench.train_epoch_end()["probe/train_top1"] < 0.9
    views, labels = draw(40, seed=1000)
    bench.score(views[0], labels)
    logged = bench.epoch_end() | bench.train_epoch_end()
    assert logged["probe/val_top1"] == 1
    assert logged["probe/train_top1"] > 0.9


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_head_is_adamw_on_the_mean_cross_entropy_of_labelled_rows(decay: float) -> None:
    bench = Bench(weight_decay=decay)
    head = nn.Linear(WIDTH, CLASSES).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=decay)
    for step in range(5):
        views, labels = draw(9, seed=step)
        labels = some_unlabelled(labels)
        bench.train(views, labels)
        known = labels != UNLABELLED
        loss = torch.stack([F.cross_entropy(head(view[known]), labels[known]) for view in views])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    expected = torch.cat([head.weight, head.bias[:, None]], 1).detach()
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(bench.weights, expected, rtol=1e-12, atol=1e-12)


def test_unlabelled_rows_change_nothing() -> None:
    with_them, without = Bench(), Bench()
    for step in range(5):
        views, labels = draw(9, seed=step)
        labels = some_unlabelled(labels)
        with_them.train(views, labels)
        without.train(views[:, labels != UNLABELLED], labels[labels != UNLABELLED])
    torch.testing.assert_close(with_them.weights, without.weights, rtol=1e-12, atol=1e-12)
    assert with_them.train_epoch_end() == without.train_epoch_end()


def test_a_batch_without_labels_is_no_step() -> None:
    """Momentum and weight decay would move the head on their own."""
    with_it, without = Bench(weight_decay=0.1), Bench(weight_decay=0.1)
    for step in range(3):
        views, labels = draw(8, seed=step)
        with_it.train(views, labels)
        with_it.train(views, torch.full_like(labels, UNLABELLED))
        without.train(views, labels)
    assert with_it.weights.equal(without.weights)


def test_without_any_label_nothing_is_logged() -> None:
    bench = Bench()
    views, labels = draw(8)
    nobody = torch.full_like(labels, UNLABELLED)
    for _ in range(2):
        bench.train(views, nobody)
        bench.score(views[0], nobody)
        bench.score(views[0], nobody, "test")
    assert bench.train_epoch_end() == bench.epoch_end() == bench.epoch_end("test") == {}
    assert not bench.weights.any()


def test_data_without_classes_is_left_alone() -> None:
    bench = Bench(classes=0)
    views, labels = draw(8)
    nobody = torch.full_like(labels, UNLABELLED)
    bench.train(views, nobody)
    bench.score(views[0], nobody)
    assert bench.train_epoch_end() == bench.epoch_end() == {}
    assert bench.probe.state_dict() == {}


def test_features_are_not_moved_by_the_probe() -> None:
    """No gradient reaches the encoder, not even from outputs that still have a graph."""
    views, labels = draw(8)
    views.requires_grad_()
    Bench().train(views, labels)
    assert views.grad is None


def test_half_precision_features_are_classified_in_float32() -> None:
    bench = Bench()
    views, labels = draw(8)
    with torch.autocast("cpu", torch.bfloat16):
        bench.train(views.bfloat16(), labels)
        bench.score(views[0].bfloat16(), labels)
    assert bench.weights.dtype == torch.float32
    assert bench.epoch_end()["probe/val_top1"] == 1


def test_a_probe_that_was_first_scored_can_learn_afterwards() -> None:
    """Lightning's `validate` runs in inference mode."""
    bench, fresh = Bench(), Bench()
    views, labels = draw(8)
    with torch.inference_mode():
        bench.score(views[0], labels)
        bench.epoch_end()
    for _ in range(2):
        bench.train(views, labels)
        fresh.train(views, labels)
    assert bench.weights.equal(fresh.weights)
    bench.score(views[0], labels)
    assert bench.epoch_end()["probe/val_top1"] == 1


def test_labels_come_with_the_first_batches_too() -> None:
    """The holdout's rows are unlabelled: they must not stand together at an epoch's beginning."""
    data = ContrastiveDataModule(batch_size=64)
    data.trainer = SimpleNamespace(
        global_rank=0, world_size=1, overfit_batches=0, current_epoch=0,
        max_epochs=1, strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # type: ignore[assignment]  # fmt: skip
    data.setup()
    labels = next(iter(data.train_dataloader())).labels
    assert int((labels != UNLABELLED).sum()) > 32


# Accuracies --------------------------------------------------------------------------------------


def direct(bench: Bench, features: Tensor, labels: Tensor, k: int) -> float:
    known = labels != UNLABELLED
    logits = F.linear(features, bench.weights[:, :-1], bench.weights[:, -1])
    best = logits.topk(k, dim=1).indices
    return float((best == labels[:, None]).any(1)[known].double().mean())


@pytest.mark.parametrize("split", ["val", "test"])
def test_accuracies_are_fractions_of_the_labelled_samples(split: str) -> None:
    bench = Bench(classes=6)
    views, labels = draw(30, classes=6)
    bench.train(views, labels)
    features = views[0] + 2 * torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = some_unlabelled(labels)
    for part in (slice(0, 7), slice(7, 8), slice(8, 30)):  # of different sizes
        bench.score(features[part], labels[part], split)
    logged = bench.epoch_end(split)
    top1, top5 = (direct(bench, features, labels, k) for k in (1, 5))
    assert 0 < top1 < top5 < 1
    assert logged == {
        f"probe/{split}_top1": pytest.approx(top1),
        f"probe/{split}_top5": pytest.approx(top5),
    }


def test_each_epoch_is_scored_anew() -> None:
    bench = Bench()
    views, labels = draw(8)
    bench.train(views, labels)
    bench.score(views[0], labels)
    assert bench.epoch_end()["probe/val_top1"] == 1
    bench.score(views[0], (labels + 1) % CLASSES)
    assert bench.epoch_end()["probe/val_top1"] == 0
    bench.logged.clear()
    assert bench.epoch_end() == {}


@pytest.mark.parametrize("classes", [2, 5])
def test_top_5_of_fewer_classes_is_not_logged(classes: int) -> None:
    bench = Bench(classes=classes)
    views, labels = draw(12, classes=classes)
    bench.train(views, labels)
    bench.score(views[0], (labels + 1) % classes)
    assert bench.epoch_end() == {"probe/val_top1": 0}


# Checkpoints -------------------------------------------------------------------------------------


def steps(bench: Bench, start: int, stop: int) -> Bench:
    for step in range(start, stop):
        bench.train(*draw(8, seed=step))
    return bench


@pytest.mark.parametrize("used", [False, True])
def test_a_restored_probe_continues_as_if_nothing_had_been(used: bool) -> None:
    through = steps(Bench(weight_decay=0.1), 0, 6)
    state = steps(Bench(weight_decay=0.1), 0, 3).probe.state_dict()
    again = Bench(weight_decay=0.1)
    if used:  # a trainer that goes back to its checkpoint
        steps(again, 10, 12)
    again.probe.load_state_dict(state)
    assert again.probe.state_dict().keys() == state.keys()  # also before the first features
    assert steps(again, 3, 6).weights.equal(through.weights)
    assert again.train_epoch_end() == through.train_epoch_end()  # of all the epoch's steps


def test_a_probe_of_before_its_optimiser_was_fused_goes_on() -> None:
    through = steps(Bench(), 0, 4)
    state = steps(Bench(), 0, 2).probe.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    again = Bench()
    again.probe.load_state_dict(state)
    assert steps(again, 2, 4).weights.equal(through.weights)


def test_a_probe_of_other_classes_is_a_sentence() -> None:
    state = steps(Bench(), 0, 1).probe.state_dict()
    bench = Bench(classes=7)
    bench.probe.load_state_dict(state)
    with pytest.raises(
        UserError, match="the probe in the checkpoint is 4 x 6, but this run needs 7 x 6"
    ):
        steps(bench, 0, 1)


def test_an_empty_state_is_a_new_probe() -> None:
    bench = Bench()
    assert bench.probe.state_dict() == {}
    bench.probe.load_state_dict({})
    assert steps(bench, 0, 2).weights.equal(steps(Bench(), 0, 2).weights)


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, -1e-3, float("nan")])
def test_a_learning_rate_that_is_not_above_zero_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=f"probe.learning_rate is {rate}, but must be above 0"):
        OnlineProbe(learning_rate=rate)


def test_a_negative_weight_decay_is_refused() -> None:
    with pytest.raises(UserError, match=r"probe.weight_decay is -0.1, but must be 0 or more"):
        OnlineProbe(weight_decay=-0.1)


def test_labels_beyond_the_classes_are_a_sentence() -> None:
    bench = Bench()
    views, labels = draw(8)
    with pytest.raises(UserError, match=r"label.* 4\b.* 4 classes"):
        bench.train(views, labels + 1)
    with pytest.raises(UserError, match=r"label.* 4\b.* 4 classes"):
        bench.score(views[0], labels + 1)


# Several ranks -----------------------------------------------------------------------------------


def train_and_score(sizes: list[int]) -> tuple[Tensor, dict[str, float], dict[str, float]]:
    """Three steps and a validation; this rank's rows of them, or all without a group."""
    rank = dist.get_rank() if dist.is_initialized() else None

    def mine(rows: Tensor, axis: int) -> Tensor:
        return rows if rank is None else rows.split(sizes, axis)[rank]

    bench = Bench(classes=6, weight_decay=0.01)
    for step in range(3):
        if step == 2:  # counts in a checkpoint are those of all ranks
            state = bench.probe.state_dict()
            bench = Bench(classes=6, weight_decay=0.01)
            bench.probe.load_state_dict(state)
        views, labels = draw(sum(sizes), seed=step, classes=6)
        labels = some_unlabelled(labels)
        labels[: sizes[0]] = UNLABELLED if step == 1 else labels[: sizes[0]]  # none on rank 0
        bench.train(mine(views, 1), mine(labels, 0))
    trained = dict(bench.train_epoch_end())
    for seed in (7, 8):
        views, labels = draw(sum(sizes), seed=seed, classes=6)
        noise = torch.randn(views[0].shape, generator=torch.Generator().manual_seed(seed))
        bench.score(mine(views[0] + 3 * noise, 0), mine(some_unlabelled(labels), 0))
    return bench.weights, trained, dict(bench.epoch_end())


@pytest.mark.ddp
@pytest.mark.parametrize("sizes", [[3, 8], [1, 6, 4]])
def test_uneven_ranks_have_one_process_head_and_count_each_sample_once(sizes: list[int]) -> None:
    weights, trained, scored = train_and_score(sizes)
    assert 0 < scored["probe/val_top1"] < 1
    for other_weights, other_trained, other_scored in ranks(len(sizes), train_and_score, sizes):
        torch.testing.assert_close(other_weights, weights, rtol=1e-10, atol=1e-10)
        assert other_trained == pytest.approx(trained)
        assert other_scored == pytest.approx(scored)
