"""The LightningModule, in real runs on digits: what it logs, hands out, derives, and refuses."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from commands import NARROW, QUIET
from lightning.pytorch.loggers import CSVLogger
from ranks import ranks
from torch import Tensor

from simclr_pl import ContrastiveDataModule, NTXentLoss, OnlineProbe, SimCLR, UserError
from simclr_pl.core.batch import StepOutput, Views


def trainer(**options: Any) -> L.Trainer:
    """Two steps and no validation, unless something else is said."""
    few = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0}
    return L.Trainer(**(QUIET | few | options))


def simclr(**options: Any) -> SimCLR:
    return SimCLR(**({"optimizer": "sgd", "warmup_epochs": 0, "projection_dim": 16} | options))


class Recording(SimCLR):
    """Keeps what a training step was given, what it returned, and what ought to come out."""

    def training_step(self, batch: Views, batch_idx: int) -> StepOutput:
        output = super().training_step(batch, batch_idx)
        with torch.no_grad():  # batch statistics again: the running ones don't matter in here
            features = self(batch.views)
            expected = (features, self.projector(features))
        self.told = (batch, output, expected)
        return output


# The ten lines of Python -------------------------------------------------------------------------


@pytest.mark.long
def test_python_use_trains_and_logs_what_is_promised(tmp_path: Path) -> None:
    run = L.Trainer(
        max_epochs=1,
        limit_train_batches=3,
        accelerator="cpu",
        log_every_n_steps=1,
        logger=CSVLogger(tmp_path),
        callbacks=[OnlineProbe()],
    )
    data = ContrastiveDataModule(dataset="digits", batch_size=128)
    run.fit(SimCLR(encoder="resnet18", temperature=0.2, optimizer="sgd"), data)
    names = {
        *("train/loss", "train/contrastive_top1", "train/lr", "train/grad_norm", "val/loss"),
        *("probe/train_top1", "probe/val_top1", "probe/val_top5"),
    }
    assert names <= run.callback_metrics.keys()
    assert all(math.isfinite(float(run.callback_metrics[name])) for name in names)
    for name in names:
        if "top" in name:
            assert 0 <= float(run.callback_metrics[name]) <= 1


def test_validation_before_training_does_no_harm() -> None:
    run = trainer(limit_val_batches=1, callbacks=[OnlineProbe()])
    model, data = simclr(), ContrastiveDataModule(batch_size=32)
    run.validate(model, data, verbose=False)
    run.fit(model, data)
    assert "probe/val_top1" in run.callback_metrics


# Steps -------------------------------------------------------------------------------------------


class _GradNorm(L.Callback):
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        grads = [p.grad.double().flatten() for p in pl_module.parameters() if p.requires_grad]
        self.norm = torch.cat(grads).norm()


def test_a_training_step_hands_out_what_it_has_seen_detached() -> None:
    model = Recording(optimizer="sgd", warmup_epochs=0, projection_dim=16, temperature=0.3)
    norm = _GradNorm()
    run = trainer(callbacks=[norm])
    run.fit(model, ContrastiveDataModule(batch_size=24))
    batch, output, (features, projections) = model.told
    assert output.keys() == StepOutput.__annotations__.keys()
    assert output["loss"].shape == ()
    assert output["features"].shape == (48, 512)
    assert output["projections"].shape == (48, 16)
    assert output["positive_rank"].shape == (48,)
    assert output["chance"] == pytest.approx(math.log(47))
    tensors = ("features", "projections", "labels", "positive_rank")
    assert not any(output[name].requires_grad for name in tensors)
    assert output["features"].equal(features)
    assert output["projections"].equal(projections)
    assert output["labels"].equal(batch.labels)
    assert output["labels"].shape == (48,)

    loss, anchors = NTXentLoss(0.3).with_statistics(*projections.chunk(2))
    assert output["positive_rank"].equal(anchors.positive_rank)
    logged = run.callback_metrics
    assert float(logged["train/loss"]) == float(output["loss"].detach()) == float(loss)
    hits = (anchors.positive_rank == 0).float().mean()
    assert float(logged["train/contrastive_top1"]) == pytest.approx(float(hits))
    assert float(logged["train/grad_norm"]) == pytest.approx(float(norm.norm), rel=1e-5)


class _Features(L.Callback):
    """Keeps the features that steps of training and of validation hand out."""

    def __init__(self) -> None:
        self.training: list[Tensor] = []
        self.validation: list[Tensor] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.training.append(args[2]["features"])

    def on_validation_batch_end(self, *args: Any) -> None:
        self.validation.append(args[2]["features"])


def test_validation_is_the_mean_loss_over_images_and_clean_features_in_eval_mode() -> None:
    model, data = simclr(temperature=0.3), ContrastiveDataModule(batch_size=50)
    outputs = _Features()
    run = trainer(limit_val_batches=1.0, num_sanity_val_steps=0, callbacks=[outputs])
    run.fit(model, data)
    model.eval()
    total, images = 0.0, 0
    with torch.no_grad():
        for step, batch in enumerate(data.evaluation_loader("val", "both")):
            clean, views, labels, index = data.make_clean(batch, views=True)
            assert views is not None
            torch.testing.assert_close(
                outputs.validation[step], model.encoder(clean), rtol=1e-4, atol=1e-5
            )
            assert labels.equal(data.splits.val.labels[index])
            z1, z2 = (model.projector(model.encoder(view)) for view in views.views.chunk(2))
            total += float(NTXentLoss(0.3)(z1, z2)) * len(batch.labels)
            images += len(batch.labels)
    assert images == len(data.splits.val)
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(total / images, rel=1e-5)


@pytest.mark.parametrize(
    ("precision", "weights", "features"),
    [("64-true", torch.float64, torch.float64), ("bf16-mixed", torch.float32, torch.bfloat16)],
)
@pytest.mark.long
def test_other_precisions_run(precision: str, weights: torch.dtype, features: torch.dtype) -> None:
    model = Recording(optimizer="sgd", warmup_epochs=0)
    probe = OnlineProbe()
    run = trainer(precision=precision, limit_val_batches=1, callbacks=[probe])
    run.fit(model, ContrastiveDataModule(batch_size=32))
    assert {p.dtype for p in model.parameters()} == {weights}
    assert model.told[1]["features"].dtype == features
    assert model.told[1]["loss"].dtype == weights  # float32 at least
    assert probe.head is not None
    assert probe.head.weight.dtype == weights
    assert math.isfinite(float(run.callback_metrics["val/loss"]))


# Initial weights ---------------------------------------------------------------------------------


def initial(model: SimCLR, **options: Any) -> dict[str, Tensor]:
    run = trainer(limit_predict_batches=1, **options)
    run.predict(model, ContrastiveDataModule(batch_size=8))
    return model.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(value.double().equal(second[name].double()) for name, value in first.items())


def test_initial_weights_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    weights = initial(simclr(seed=3))
    torch.manual_seed(2)
    torch.rand(5)
    state = torch.get_rng_state()
    assert same(weights, initial(simclr(seed=3)))
    assert torch.get_rng_state().equal(state)  # and take nothing from anybody
    assert same(weights, initial(simclr(seed=3), precision="64-true"))  # float64 by default
    assert same(weights, initial(simclr(seed=3, temperature=0.1, optimizer="adamw")))
    assert not same(weights, initial(simclr(seed=4)))
    assert not same(weights, initial(simclr()))
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert same(weights, initial(simclr()))


# Learning rate -----------------------------------------------------------------------------------


class _Rates(L.Callback):
    def __init__(self) -> None:
        self.used: list[float] = []
        self.logged: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.used.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.logged.append(float(trainer.callback_metrics["train/lr"]))


@pytest.mark.parametrize(
    ("scaling", "peak"),
    [("linear", 0.3 * 8 / 256), ("sqrt", 0.3 * math.sqrt(8 / 256)), ("none", 0.3)],
)
def test_peak_and_warm_up_follow_the_batch_and_the_trainers_steps(
    scaling: Any, peak: float
) -> None:
    rates = _Rates()
    model = simclr(learning_rate=0.3, lr_scaling=scaling, warmup_epochs=1.5)
    trainer(max_epochs=3, limit_train_batches=2, callbacks=[rates]).fit(
        model, ContrastiveDataModule(batch_size=8)
    )
    assert model.peak_learning_rate == pytest.approx(peak, rel=1e-12)
    assert model.warmup_steps == 3  # of 2 x 3
    expected = [peak / 3, peak * 2 / 3, peak]
    expected += [peak * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert rates.used == pytest.approx(expected, rel=1e-9)
    assert rates.logged == pytest.approx(rates.used, rel=1e-6)


def test_steps_can_be_the_limit_as_well() -> None:
    rates = _Rates()
    run = trainer(max_epochs=-1, max_steps=4, callbacks=[rates])
    run.fit(simclr(), ContrastiveDataModule(batch_size=8))
    peak = 0.3 * 8 / 256
    expected = [peak * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates.used == pytest.approx(expected, rel=1e-9)


# What is refused ---------------------------------------------------------------------------------


def test_a_run_without_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"cosine needs an end: give --trainer.max_epochs or"):
        trainer(max_epochs=-1).fit(simclr(), ContrastiveDataModule(batch_size=8))


def test_a_trainer_without_the_data_module_is_refused() -> None:
    loader = [torch.zeros(2)]
    with pytest.raises(UserError, match=r"SimCLR needs a data module .*ContrastiveDataModule"):
        trainer().fit(simclr(), loader, loader)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"temperature": 0}, "temperature is 0, but must be above 0"),
        ({"loss_block_size": 0}, "block_size is 0"),
        ({"learning_rate": -1}, "model.learning_rate is -1"),
        ({"optimizer": "adam"}, "model.optimizer: unknown name 'adam': there are sgd, adamw"),
    ],
)
def test_values_out_of_range_are_refused_at_once(option: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        simclr(**option)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
        ({"projector_layers": 0}, "model.projector_layers is 0"),
        ({"projection_dim": 0}, "must be at least 1"),
    ],
)
def test_values_that_the_network_refuses_are_a_sentence(
    option: dict[str, Any], sentence: str
) -> None:
    before = torch.get_default_dtype(), torch.get_rng_state()
    with pytest.raises(UserError, match=sentence):
        trainer().fit(simclr(**option), ContrastiveDataModule(batch_size=8))
    assert torch.get_default_dtype() == before[0]
    assert torch.get_rng_state().equal(before[1])


# Several ranks -----------------------------------------------------------------------------------


class _Gradients(L.Callback):
    """The gradient of each step, as the optimiser sees it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        kept = ("projector.0.0.weight", "projector.1.1.weight", "encoder.conv1.weight")
        self.steps.append({n: pl_module.get_parameter(n).grad.clone() for n in kept})


def train(options: dict[str, Any]) -> dict[str, Tensor]:
    """Three steps and a validation in float64, on however many ranks there are."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    probe, gradients = OnlineProbe(learning_rate=0.01), _Gradients()
    run = trainer(
        precision="64-true",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        limit_train_batches=3,
        limit_val_batches=2,
        callbacks=[probe, gradients],
        num_sanity_val_steps=0,
    )
    model = simclr(temperature=0.1, **options)
    run.fit(model, ContrastiveDataModule(batch_size=27, seed=1))
    assert run.world_size == world
    assert probe.head is not None
    told = {name: torch.as_tensor(value) for name, value in run.callback_metrics.items()}
    told |= {f"probe head {n}": v.detach() for n, v in probe.head.state_dict().items()}
    for step, grads in enumerate(gradients.steps):
        told |= {f"step {step} {name}": grad for name, grad in grads.items()}
    wanted = ("projector", "encoder.conv1", "encoder.bn1", "encoder.layer4.1.bn2")
    weights = {n: v for n, v in model.state_dict().items() if n.startswith(wanted)}
    return told | {name: value.clone() for name, value in weights.items()}


@pytest.mark.ddp
def test_two_uneven_ranks_train_as_one_process_does() -> None:
    """27 images a batch: 13 and 14. Loss, gradients, weights, statistics, probe and metrics."""
    options = {"warmup_epochs": 0, "seed": 1}
    expected = train(options)
    assert len([name for name in expected if name.startswith("step 2")]) == 3
    for told in ranks(2, train, options, timeout=120):
        assert told.keys() == expected.keys()
        for name, value in expected.items():
            scale = max(1.0, float(value.double().abs().max()))
            error = float((told[name].double() - value.double()).abs().max()) / scale
            assert error < 1e-10, (name, error)


# Layers that draw ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_draws_other_masks_in_each_step(rate: float) -> None:
    """The same images, views and weights, twice: what differs is what is drawn."""
    seen = _Features()
    run = trainer(callbacks=[seen], overfit_batches=1, max_epochs=2, limit_train_batches=1)
    args = NARROW | {"drop_rate": rate}
    model = simclr(encoder="resnet10t", encoder_args=args, learning_rate=1e-30, weight_decay=0.0)
    run.fit(model, ContrastiveDataModule(batch_size=32))
    first, second = seen.training
    assert first.equal(second) == (rate == 0)
