"""kNN while training: when it comes, over a resume, on ranks, and that training doesn't notice."""

import gc
import weakref
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from commands import NARROW, QUICK, fit, run
from monitored import Other, digits, trainer
from nearest import hits_literally
from noise import write_npz
from ranks import ranks
from run_files import checkpoint, rows, same_weights
from torch import Tensor

from simclr_pl import ContrastiveDataModule, KNNMonitor, SimCLR, UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.protocols import features as features_module
from simclr_pl.protocols.features import EncodesSplits, encode, encode_once


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
        expected = hits_literally(*val[:2], *train[:2], k) / 146
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
    path = write_npz(tmp_path / "images.npz", 8, 8, 1, classes=0, val=10)
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


class Asking(EncodesSplits):
    """Asks for the training split's features twice."""

    def __init__(self) -> None:
        super().__init__("asking", 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.same = encode_once(trainer, pl_module, "train") is encode_once(
            trainer, pl_module, "train"
        )
        self.reference = weakref.ref(encode_once(trainer, pl_module, "train").features)


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


def monitored() -> dict[str, float]:
    """A run in float64, whose weights are the same on any number of ranks to 1e-12."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    model = SimCLR("resnet10t", NARROW, optimizer="sgd", warmup_epochs=0, seed=0)
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
def test_accuracies_are_exactly_those_of_one_device() -> None:
    alone = monitored()
    assert alone.keys() == {"knn/val_top1", "knn200/val_top1"}
    assert alone["knn/val_top1"] * 146 == pytest.approx(round(alone["knn/val_top1"] * 146))
    assert alone["knn200/val_top1"] < alone["knn/val_top1"] < 1
    for world in (2, 3):
        assert ranks(world, monitored, timeout=120) == [alone] * world
