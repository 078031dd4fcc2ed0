"""LinearEvaluation: the command's number, on any number of ranks, and training is left alone."""

import json
from typing import Any

import lightning as L
import pytest
import torch
from commands import NARROW, QUIET, fit, run
from monitored import trainer
from ranks import ranks
from run_files import checkpoint, rows
from torch import Tensor, nn

from simclr_pl import ContrastiveDataModule, KNNMonitor, LinearEvaluation, SimCLR, UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.protocols.features import encode
from simclr_pl.protocols.linear import Fitted, Settings, fit_linear
from simclr_pl.protocols.scoring import labelled


def train(
    *callbacks: L.Callback,
    world: int = 1,
    epochs: int = 3,
    data: ContrastiveDataModule | None = None,
    **options: Any,
) -> tuple[L.Trainer, L.LightningModule, list[dict[str, float]]]:
    """A small run, and what each validation logged."""
    logged: list[dict[str, float]] = []

    class Recorder(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            logged.append({name: float(v) for name, v in trainer.callback_metrics.items()})

    fast = {"optimizer": "sgd", "learning_rate": 0.05, "warmup_epochs": 0, "seed": 1}
    model = SimCLR("resnet10t", NARROW, **fast)
    lightning = trainer(
        *callbacks,
        Recorder(),
        max_epochs=epochs,
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        limit_train_batches=2,
        **options,
    )
    lightning.fit(model, data or ContrastiveDataModule(batch_size=128, flip=0.0, seed=1))
    return lightning, model, logged


@pytest.mark.long
def test_it_logs_the_protocol_s_number_when_it_is_due_and_at_the_end() -> None:
    trainer, model, logged = train(LinearEvaluation(every_n_epochs=2))
    assert ["linear/val_top1" in numbers for numbers in logged] == [False, True, True]
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    fitted, val = (labelled(encode(model, data, s), s) for s in ("train", "val"))
    expected = (
        fit_linear(lambda _: fitted.features, fitted.labels, 10, Settings(seed=1)).score(val).top1
    )
    assert logged[-1]["linear/val_top1"] == pytest.approx(expected, abs=0.01)
    assert 0.2 < expected <= 1


@pytest.mark.long
def test_the_test_split_is_scored_where_that_is_asked_for_behind_the_last_step_alone() -> None:
    asked = LinearEvaluation(every_n_epochs=1, epochs=1, test_at_end=True)
    *_, logged = train(asked, epochs=2)
    assert ["linear/test_top1" in numbers for numbers in logged] == [False, True]
    *_, logged = train(LinearEvaluation(every_n_epochs=1, epochs=1), epochs=1)
    assert ["linear/val_top1" in numbers for numbers in logged] == [True]
    assert "linear/test_top1" not in logged[0]


@pytest.mark.long
def test_of_several_validations_in_the_last_epoch_only_the_last_scores_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored: list[int] = []
    score = Fitted.score
    monkeypatch.setattr(
        Fitted, "score", lambda s, rows: scored.append(len(rows.labels)) or score(s, rows)
    )
    asked = LinearEvaluation(1, epochs=1, test_at_end=True)
    *_, logged = train(asked, epochs=1, val_check_interval=1)
    assert "linear/test_top1" in logged[-1]
    assert scored == [146, 146, 339]  # val, val and test


@pytest.mark.parametrize("labels", [None, UNLABELLED])
def test_without_a_labelled_test_split_there_is_no_number_for_it(labels: int | None) -> None:
    data = ContrastiveDataModule("digits", batch_size=128, flip=0.0, seed=1)
    data.setup()
    test: Any = data.splits.test
    other = None if labels is None else test.relabel(torch.full((len(test),), labels))
    data.splits = data.splits._replace(test=other)
    asked = LinearEvaluation(1, epochs=1, test_at_end=True)
    *_, logged = train(asked, epochs=1, data=data)
    assert "linear/val_top1" in logged[-1]
    assert "linear/test_top1" not in logged[-1]


@pytest.mark.long
def test_training_takes_the_same_course() -> None:
    _, plain, before = train()
    _, evaluated, after = train(LinearEvaluation(every_n_epochs=1, epochs=1))
    assert all("linear/val_top1" in numbers for numbers in after)
    for mine, other in zip(before, after, strict=True):
        assert {**other, **mine} == other
    weights = evaluated.state_dict()
    assert all(value.equal(weights[name]) for name, value in plain.state_dict().items())


def test_off_means_off() -> None:
    assert all("linear/val_top1" not in n for n in train(LinearEvaluation(), epochs=1)[2])


class Pixels(L.LightningModule):
    """Any module whose `forward` gives features; its steps return nothing of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer(images.flatten(1))
        return features

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch.views.chunk(2)[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


@pytest.mark.long
def test_it_works_with_any_module_that_gives_features() -> None:
    lightning = trainer(LinearEvaluation(every_n_epochs=1), max_epochs=1, num_sanity_val_steps=2)
    lightning.fit(Pixels(), ContrastiveDataModule("digits", flip=0.0))
    assert lightning.callback_metrics["linear/val_top1"] > 0.8


def _on_a_rank(world: int) -> list[float]:
    asked = LinearEvaluation(every_n_epochs=1, test_at_end=True)
    logged = train(asked, world=world, epochs=1)[2][-1]
    return [logged[f"linear/{split}_top1"] for split in ("val", "test")]


@pytest.mark.ddp
def test_two_ranks_log_one_number_and_it_is_one_process_s() -> None:
    first, second = ranks(2, _on_a_rank, 2)
    assert first == second
    assert first == pytest.approx(_on_a_rank(1), abs=0.015)  # two images: sums' order differs


def test_labelled_images_of_one_group_are_said_before_the_first_step() -> None:
    data = ContrastiveDataModule("digits", batch_size=128, seed=1)
    data.setup()
    source: Any = data.splits.train
    source.groups, source.group_names = torch.zeros(len(source), dtype=torch.int64), [b"ward 3"]
    with pytest.raises(UserError, match=r"are all of one group, ward 3 \(1312 images\)"):
        train(LinearEvaluation(every_n_epochs=1), data=data)


def test_a_test_split_too_small_for_the_devices_is_said_before_the_first_step() -> None:
    data = ContrastiveDataModule("digits", batch_size=128, seed=1)
    data.setup()
    test: Any = data.splits.test
    data.splits = data.splits._replace(test=test.select(torch.arange(1)))
    with pytest.raises(UserError, match="the test split has 1 images, too few for 1 device"):
        train(LinearEvaluation(1, test_at_end=True), data=data, limit_val_batches=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every_n_epochs": -1}, "linear.every_n_epochs is -1"),
        ({"epochs": 0}, "linear.epochs is 0"),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LinearEvaluation(**arguments)


@pytest.mark.long
def test_the_command_line_turns_it_on_and_a_resume_may_change_it(tmp_path: Any) -> None:
    directory = tmp_path / "run"
    fit(directory, "--linear.every_n_epochs", 1, "--linear.test_at_end", "true")
    assert sum("linear/val_top1" in row for row in rows(directory)) == 2
    for split in ("val", "test"):
        assert run("linear", "--run_dir", directory, "--split", split).code == 0
        found = json.loads((directory / f"results/linear-{split}-seed0.json").read_text())
        assert found["epoch"] == 2
        # Another memory layout of the same weights rounds differently: an image at most.
        logged = float(rows(directory)[-1][f"linear/{split}_top1"])
        assert found["top1"] == pytest.approx(logged, abs=0.007)
    config = directory / "config.yaml"
    assert "every_n_epochs: 1" in config.read_text()
    more = ("--trainer.max_epochs", "3", "--resume", "--linear.every_n_epochs", 0)
    fit(directory, *more)
    assert checkpoint(directory)["epoch"] == 2
    assert sum("linear/val_top1" in row for row in rows(directory)) == 2


class _Own(L.LightningDataModule):
    """Somebody's own data, of which nobody can tell the splits."""

    def train_dataloader(self) -> Any:
        return []


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("monitor", [LinearEvaluation(1), KNNMonitor(1)])
@pytest.mark.parametrize("data", [{"datamodule": _Own()}, {"train_dataloaders": []}])
def test_other_data_than_a_contrastive_data_module_are_refused_before_the_first_step(
    monitor: L.Callback, data: dict[str, Any]
) -> None:
    trainer = L.Trainer(**QUIET, max_epochs=1, callbacks=[monitor])
    name = type(monitor).__name__
    with pytest.raises(UserError, match=rf"^{name} encodes .* a ContrastiveDataModule gives it"):
        trainer.fit(SimCLR(), **data)
