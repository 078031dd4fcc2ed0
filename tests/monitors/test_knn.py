"""kNN while training: votes, blocks, unlabelled rows, ranks, and that training doesn't notice."""

import gc
import weakref
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from commands import QUICK, checkpoint, fit, rows, run, same_weights
from monitored import Other, digits, trainer
from ranks import ranks
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from simclr_pl import ContrastiveDataModule, KNNMonitor, SimCLR, UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.distributed import shard, sum_over_ranks
from simclr_pl.protocols import features as features_module
from simclr_pl.protocols import knn
from simclr_pl.protocols.features import encode, encode_once, forget
from simclr_pl.protocols.knn import knn_hits, neighbours

TEMPERATURE = 0.07
CLASSES = 5


def draw(count: int, seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Noisy directions of classes, of all lengths, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, 8, generator=generator)
    lengths = torch.rand(count, 1, generator=generator) * 9 + 0.1
    return ((centres[labels] + 1.2 * noise) * lengths).double(), labels


def literal(queries: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, k: int) -> int:
    """Wu et al. 2018, section 3.4, a query at a time."""
    right = 0
    for query, label in zip(queries.tolist(), labels.tolist(), strict=True):
        if label == UNLABELLED:
            continue
        votes: dict[int, float] = {}
        scored = sorted(
            (
                (float(np.dot(query, row) / np.linalg.norm(query) / np.linalg.norm(row)), one)
                for row, one in zip(bank.tolist(), bank_labels.tolist(), strict=True)
                if one != UNLABELLED
            ),
            reverse=True,
        )
        for similarity, one in scored[:k]:
            votes[one] = votes.get(one, 0) + float(np.exp(similarity / TEMPERATURE))
        right += max(votes, key=lambda one: votes[one]) == label
    return right


def some_unlabelled(labels: Tensor) -> Tensor:
    return labels.where(torch.arange(len(labels)) % 4 != 1, UNLABELLED)


# The classifier -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unlabelled", [False, True])
def test_votes_are_those_of_the_definition(unlabelled: bool) -> None:
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    if unlabelled:
        labels, bank_labels = some_unlabelled(labels), some_unlabelled(bank_labels)
    ks = (1, 7, 20, 120, 1000)  # the last is more than there are
    hits = knn_hits(queries, labels, bank, bank_labels, ks, TEMPERATURE).tolist()
    assert hits == [
        *(literal(queries, labels, bank, bank_labels, k) for k in ks),
        int((labels != UNLABELLED).sum()),
    ]
    assert 0.3 * hits[-1] < min(hits[:-1]) < hits[-1]
    assert len(set(hits[:-1])) > 2


@pytest.mark.parametrize("k", [1, 20, 100])
def test_scikit_learn_agrees(k: int) -> None:
    (queries, labels), (bank, bank_labels) = draw(200, 3), draw(400, 4)

    def weights(distance: Any) -> Any:
        return np.exp((1 - distance) / TEMPERATURE)

    theirs = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    right = theirs.fit(bank, bank_labels).predict(queries) == labels.numpy()
    ours = knn_hits(queries, labels, bank, bank_labels, [k], TEMPERATURE)
    assert ours.tolist() == [int(right.sum()), 200]


@pytest.mark.parametrize(("rows_", "columns"), [(7, 11), (1, 1), (1000, 13), (64, 1000)])
def test_blocks_change_nothing(rows_: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (queries, _), (bank, _) = draw(50, 5), draw(90, 6)
    some = torch.arange(90)[torch.arange(90) % 3 != 0]
    similarity, place = neighbours(queries, bank, 20, some)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2)
    cosine[:, ::3] = -2
    assert place.equal(cosine.topk(20).indices)
    torch.testing.assert_close(similarity, cosine.topk(20).values)
    monkeypatch.setattr(knn, "QUERIES", rows_)
    monkeypatch.setattr(knn, "BANK", columns)
    again, places = neighbours(queries, bank, 20, some)
    assert places.equal(place)
    torch.testing.assert_close(again, similarity, rtol=1e-12, atol=1e-12)


def test_no_block_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "QUERIES", 16)
    monkeypatch.setattr(knn, "BANK", 32)
    (queries, labels), (bank, bank_labels) = draw(50, 5), draw(300, 6)
    sizes = []
    original = Tensor.topk
    monkeypatch.setattr(
        Tensor, "topk", lambda x, *a, **k: (sizes.append(x.numel()), original(x, *a, **k))[1]
    )
    knn_hits(queries, labels, bank, bank_labels, (20,), TEMPERATURE)
    assert max(sizes) == 16 * 40  # 20 kept and 20 new; a block has 16 x 32


@pytest.mark.parametrize("temperature", [1e-4, 0.07, 100.0])
def test_any_temperature_gives_numbers(temperature: float) -> None:
    """With a small one the nearest decides, with a large one the majority."""
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    got = knn_hits(queries.float(), labels, bank, bank_labels, [9], temperature)[0]
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2)
    near = bank_labels[cosine.topk(9).indices]
    if temperature == 1e-4:
        assert got == (near[:, 0] == labels).sum()
    if temperature == 100.0:
        # Between classes with as many votes, the sum of similarities decides.
        assert abs(got - (near.mode(1).values == labels).sum()) <= 9


def test_labels_may_be_as_large_as_identifiers_are() -> None:
    one, other = draw(30, 1), draw(50, 2)
    names = torch.tensor([2**62 - c for c in range(CLASSES)]).flip(0)
    plain, named = (
        knn_hits(one[0], to[one[1]], other[0], to[other[1]], (5, 20), TEMPERATURE).tolist()
        for to in (torch.arange(CLASSES), names)
    )
    assert named == plain


@pytest.mark.parametrize(("queries", "bank"), [(0, 40), (20, 0), (0, 0)])
def test_nothing_labelled_is_nothing_right(queries: int, bank: int) -> None:
    """A rank may have no labelled query; a bank may have no labelled row."""
    one, other = draw(30, 1), draw(50, 2)
    labels = torch.where(torch.arange(30) < queries, one[1], UNLABELLED)
    bank_labels = torch.where(torch.arange(50) < bank, other[1], UNLABELLED)
    hits = knn_hits(one[0], labels, other[0], bank_labels, (5, 20), TEMPERATURE).tolist()
    assert hits[-1] == queries
    if not bank or not queries:
        assert max(hits[:-1]) == 0


def test_what_has_no_numbers_is_not_right() -> None:
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    queries[::2] = torch.nan
    few = knn_hits(queries[1::2], labels[1::2], bank, bank_labels, (1, 20), TEMPERATURE)[:2]
    hits = knn_hits(queries, labels, bank, bank_labels, (1, 20), TEMPERATURE)
    assert hits.tolist() == [*few.tolist(), 61]
    bank[3] = torch.nan  # everybody's nearest neighbour
    assert knn_hits(queries, labels, bank, bank_labels, (1, 20), TEMPERATURE).tolist() == [0, 0, 61]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_features_are_compared_in_float32(dtype: torch.dtype) -> None:
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    queries, bank = queries.to(dtype), bank.to(dtype)
    got = knn_hits(queries, labels, bank, bank_labels, [20], TEMPERATURE)
    wide = knn_hits(queries.float(), labels, bank.float(), bank_labels, [20], TEMPERATURE)
    assert got.equal(wide)
    assert neighbours(queries.float(), bank, 3)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every_n_epochs": -1}, "knn.every_n_epochs is -1, but must be 0"),
        ({"k": ()}, r"knn.k is \[\], but must be"),
        ({"k": (5, 0)}, r"knn.k is \[5, 0\], but must be"),
        ({"temperature": 0.0}, "knn.temperature is 0.0, but must be above 0"),
        ({"temperature": float("nan")}, "knn.temperature is nan"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        KNNMonitor(**options)


# In a run -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_logged_numbers_are_those_of_val_against_train() -> None:
    model, data = Other(), digits()
    lightning = trainer(KNNMonitor(1), max_epochs=1)
    lightning.fit(model, data)
    train, val = encode(model, data, "train"), encode(model, data, "val")
    assert (len(train.labels), len(val.labels)) == (1458, 146)
    assert int((train.labels != UNLABELLED).sum()) == 1312  # val's own images have no vote
    for name, k in (("knn/val_top1", 20), ("knn200/val_top1", 200)):
        expected = literal(val.features, val.labels, train.features, train.labels, k) / 146
        assert float(lightning.callback_metrics[name]) == pytest.approx(expected, abs=1e-6)
        assert expected > 0.5


class When(L.Callback):
    """Notes the epochs whose validation logged kNN."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "knn/val_top1" in trainer.callback_metrics:
            self.epochs.append(trainer.current_epoch + 1)
            trainer.callback_metrics.clear()
            trainer._logger_connector._callback_metrics.clear()


@pytest.mark.parametrize(
    ("every", "options", "expected"),
    [
        (2, {"max_epochs": 5}, [2, 4, 5]),
        (10, {"max_epochs": 3}, [3]),
        (0, {"max_epochs": 3}, []),
        (10, {"max_steps": 4, "max_epochs": -1}, [2]),
    ],
)
def test_it_comes_every_so_many_epochs_and_at_the_end(
    every: int, options: dict[str, Any], expected: list[int]
) -> None:
    when = When()
    lightning = trainer(KNNMonitor(every), when, limit_train_batches=2, **options)
    lightning.fit(Other(), digits())
    assert when.epochs == expected


def test_data_without_classes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(path, train_images=pixels, val_images=pixels[:10])
    lightning = trainer(KNNMonitor(1), max_epochs=1)
    lightning.fit(Other(), ContrastiveDataModule("npz", str(path), 20, jitter=0.0, grayscale=0.0))
    assert "knn/val_top1" not in lightning.callback_metrics


def test_training_does_not_notice(tmp_path: Path) -> None:
    """Weights, running statistics, optimiser and every other number, to the bit."""
    fit(tmp_path / "with", "--knn.every_n_epochs=1")
    fit(tmp_path / "without", "--knn.every_n_epochs=0")
    assert same_weights(checkpoint(tmp_path / "with"), checkpoint(tmp_path / "without"))
    numbers = rows(tmp_path / "with")
    assert sum("knn/val_top1" in row for row in numbers) == 2
    for row in numbers:
        for name in ("knn/val_top1", "knn200/val_top1"):
            row.pop(name, None)
    assert numbers == rows(tmp_path / "without")


def test_any_module_stays_as_it_is_modes_and_generator_included() -> None:
    """`Other` draws from torch's own generator and holds a part in eval mode all the time."""
    states = []
    for monitors in ([], [KNNMonitor(1)]):
        L.seed_everything(3, verbose=False)
        model = Other()
        lightning = trainer(*monitors, max_epochs=2, limit_train_batches=3)
        lightning.fit(model, digits())
        states.append({**model.state_dict(), "generator": torch.get_rng_state()})
    assert all(states[0][name].equal(value) for name, value in states[1].items())
    assert "knn/val_top1" in lightning.callback_metrics


def test_encode_gives_each_part_its_mode_back() -> None:
    model, data = Other(), digits()
    data.prepare_data()
    data.setup()
    model.frozen.eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    encode(model, data, "val")
    assert [module.training for module in model.modules()] == modes


@pytest.mark.long
def test_a_resumed_run_has_the_same_numbers_to_the_bit(tmp_path: Path) -> None:
    often = ("--knn.every_n_epochs=2", "--trainer.max_epochs=4")
    fit(tmp_path / "through", *often)
    stop = ("--trainer.callbacks+=recording.Interruption", "--trainer.callbacks.step=5")
    fit_until = run("fit", *QUICK, *often, *stop, "--run_dir", tmp_path / "again")
    assert fit_until.code != 0
    fit(tmp_path / "again", *often, "--resume")
    assert rows(tmp_path / "again") == rows(tmp_path / "through")
    assert sum("knn/val_top1" in row for row in rows(tmp_path / "again")) == 2


def test_how_often_is_free_to_change_on_a_resume(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    fit(tmp_path / "run", "--resume", "--trainer.max_epochs=3", "--knn.every_n_epochs=1")
    assert "knn/val_top1" in rows(tmp_path / "run")[-1]


# Sharing features ---------------------------------------------------------------------------------


class Asking(L.Callback):
    """Asks for the training split's features twice."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.same = encode_once(trainer, pl_module, "train") is encode_once(
            trainer, pl_module, "train"
        )
        self.reference = weakref.ref(encode_once(trainer, pl_module, "train").features)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        forget(trainer)


def test_features_are_encoded_once_a_step_and_let_go_of() -> None:
    asking = Asking()
    lightning = trainer(KNNMonitor(1), asking, max_epochs=1, limit_train_batches=1)
    lightning.fit(Other(), digits())
    assert asking.same
    gc.collect()
    assert asking.reference() is None
    assert lightning not in features_module._ENCODED


def test_features_of_another_step_are_new() -> None:
    model, data = Other(), digits()
    lightning = trainer(max_epochs=1, limit_train_batches=1)
    before: list[Tensor] = []

    class Before(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            before.append(encode_once(trainer, pl_module, "val").features)

    lightning.callbacks.append(Before())  # type: ignore[attr-defined]
    lightning.fit(model, data)
    after = encode_once(lightning, model, "val").features
    assert not after.equal(before[0])
    torch.testing.assert_close(after, encode(model, data, "val").features)
    reference = weakref.ref(lightning)
    del lightning, model, data
    gc.collect()
    assert reference() is None  # the cache keeps no trainer alive


# Several ranks ------------------------------------------------------------------------------------


def shared_hits() -> list[int]:
    """Each rank's share of queries against the whole bank."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    (queries, labels), (bank, bank_labels) = draw(61, 1), draw(150, 2)
    labels = some_unlabelled(labels)
    labels[:20] = UNLABELLED  # no labelled query on the first of three
    mine = shard(61, rank, world)
    hits = knn_hits(queries[mine], labels[mine], bank, bank_labels, (20, 200), TEMPERATURE)
    counts: list[int] = sum_over_ranks(hits).tolist()
    return counts


def monitored() -> dict[str, float]:
    """A run in float64, whose weights are the same on any number of ranks to 1e-12."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    model = SimCLR(
        "resnet10t",
        {"channels": [8, 8, 16, 16], "stem_type": "", "stem_width": 8},
        optimizer="sgd",
        warmup_epochs=0,
        seed=0,
    )
    lightning = trainer(
        KNNMonitor(1),
        max_epochs=2,
        limit_train_batches=4,
        precision="64-true",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
    )
    lightning.fit(model, digits(100))
    return {k: float(v) for k, v in lightning.callback_metrics.items() if k.startswith("knn")}


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_count_what_one_process_counts(world: int) -> None:
    assert ranks(world, shared_hits) == [shared_hits()] * world


@pytest.mark.ddp
def test_accuracies_are_exactly_those_of_one_device() -> None:
    alone = monitored()
    assert alone.keys() == {"knn/val_top1", "knn200/val_top1"}
    assert alone["knn/val_top1"] * 146 == pytest.approx(round(alone["knn/val_top1"] * 146))
    assert alone["knn200/val_top1"] < alone["knn/val_top1"] < 1
    for world in (2, 3):
        assert ranks(world, monitored, timeout=120) == [alone] * world
