"""Every command's step on a device that isn't there: what must be on it is, and nothing is mixed.

Fake tensors have a shape and a device, and no numbers. On a pretended `cuda:0` all but `backward`
works without a GPU (autograd would ask the driver); `meta` is a second accelerator, for whole
steps.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.commands.bench.step_timing import BareStep
from simclr_pl.core.batch import Batch, MicroBatches
from simclr_pl.core.model import simclr
from simclr_pl.core.model.checkpoint import KEY, description
from simclr_pl.core.model.geometry import geometry_of
from simclr_pl.core.model.network import build_network
from simclr_pl.core.model.optim import OptimizerSettings, build_optimizer
from simclr_pl.core.speed.constants import constant
from simclr_pl.pictures import encoded_sample as snapshot
from simclr_pl.protocols import finetune, linear
from simclr_pl.protocols.features import encode, encode_crops
from simclr_pl.protocols.finetune import FineTuning
from simclr_pl.protocols.knn import neighbours, vote
from simclr_pl.protocols.labelled_datamodule import LabelledImages
from simclr_pl.protocols.linear import Settings, judge, train_heads
from simclr_pl.protocols.scoring import Rows

CUDA, META = torch.device("cuda:0"), torch.device("meta")

ROWS = 12


@pytest.fixture(scope="module", params=["small", "imagenet"])
def stem(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def data() -> ContrastiveDataModule:
    """Digits, larger than they are: crops are resampled, and blurred by more than a pixel."""
    module = ContrastiveDataModule("digits", batch_size=ROWS, image_size=40)
    module.setup()
    return module


@pytest.fixture(scope="module")
def raw(data: ContrastiveDataModule) -> Batch:
    """As a loader gives it."""
    return next(iter(data.evaluation_loader("val", "both")))


@pytest.fixture
def model(data: ContrastiveDataModule, stem: str) -> SimCLR:
    """Built, with a trainer of which no step is logged."""
    small = {"encoder": "resnet10t", "encoder_args": {"channels": [8, 8, 8, 8], "drop_rate": 0.1}}
    built = SimCLR(**small, stem=stem, projection_dim=8)  # type: ignore[arg-type]
    geometry = geometry_of(data)
    assert geometry is not None
    build_network(built, geometry)
    built._trainer = quiet()
    built.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return built


@pytest.fixture
def tuning(model: SimCLR, data: ContrastiveDataModule, tmp_path: Path) -> FineTuning:
    assert model.geometry is not None
    weights = {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    about = description(model.spec, model.geometry, 0)
    torch.save({KEY: about, "state_dict": weights}, tmp_path / "it.ckpt")
    built = FineTuning(str(tmp_path / "it.ckpt"), weight_decay=1e-4)
    built.add_head(data.num_classes)
    built._trainer = quiet()
    return built


def quiet() -> Any:
    """Of a trainer what a step asks for."""
    return SimpleNamespace(
        global_step=1, global_rank=0, world_size=1, log_every_n_steps=0, fast_dev_run=False,
        estimated_stepping_batches=9, is_last_batch=False, val_check_batch=None,
        precision_plugin=Precision(), gradient_clip_val=None, gradient_clip_algorithm=None,
        optimizers=[], check_val_every_n_epoch=1,
        fit_loop=SimpleNamespace(batch_idx=0, total_batch_idx=0),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_real(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """All that a test makes is fake, and what was there counts as fake tensors of the CPU."""
    for name in ("data", "raw", "model", "tuning", "asked"):  # these are made of numbers
        if name in request.fixturenames:
            request.getfixturevalue(name)
    # They look into a number that the host has.
    for module in (simclr, finetune):
        monkeypatch.setattr(module, "step_seed", lambda *args: 0)
    monkeypatch.setattr(linear, "epoch_order", lambda seed, epoch, size: torch.arange(size))
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # none on `meta`
    constant.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    constant.cache_clear()


def put(module: Any, device: torch.device) -> Any:
    """What `module.to` does, which cannot do it to fake tensors."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                moved = value.detach().to(device)
                part._parameters[name] = nn.Parameter(moved, value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
        for name in getattr(part, "_defaults", {}):  # a torchmetrics metric's states
            setattr(part, name, getattr(part, name).to(device))
        if hasattr(part, "_device"):  # Lightning's own note
            part._device = device
    return module


def batch_of(raw: Batch, data: ContrastiveDataModule, device: torch.device, micro: bool) -> Any:
    there = raw.to(device)
    if not micro:
        return data.make_views(there)
    return MicroBatches(there.split([5, len(there.labels) - 5]), data.make_views)


# What the tests rest on ---------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CUDA, META])
def test_a_mix_of_devices_is_seen(
    raw: Batch, data: ContrastiveDataModule, device: torch.device
) -> None:
    with pytest.raises(FakeTensorDeviceMismatchError):
        data.make_views(raw._replace(images=raw.images.to(device)))


# fit, bench ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CUDA, META])
@pytest.mark.parametrize("sizes", [False, True])
def test_views(raw: Batch, data: ContrastiveDataModule, device: torch.device, sizes: bool) -> None:
    """Of images that fill their batch, and of packed ones of many sizes."""
    if sizes:
        raw = raw._replace(sizes=torch.full((len(raw.labels), 2), 8))
    made = data.make_clean(raw.to(device), views=True)
    assert made.views is not None
    assert {part.device for part in (made.clean, *made.views[:3])} == {device}


@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
@pytest.mark.long
def test_a_step_of_fit(
    raw: Batch, data: ContrastiveDataModule, model: SimCLR, name: str, micro: bool
) -> None:
    put(model, META)
    recipe = OptimizerSettings(name, 0.1, "linear", 1e-4, 0.9, 0)
    optimizer = build_optimizer(model, recipe, 0.1)
    for _ in range(2):
        output = model.training_step(batch_of(raw, data, META, micro), 0)
        output["loss"].backward()
        optimizer.step()
    assert {part.device for part in output.values() if isinstance(part, Tensor)} == {META}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_step_of_fit_forward_on_cuda(
    raw: Batch, data: ContrastiveDataModule, model: SimCLR
) -> None:
    put(model, CUDA)
    output = model.training_step(batch_of(raw, data, CUDA, micro=False), 0)
    assert {part.device for part in output.values() if isinstance(part, Tensor)} == {CUDA}


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_an_optimisers_step_on_cuda(model: SimCLR, name: str) -> None:
    """Fused, where it can be."""
    put(model, CUDA)
    recipe = OptimizerSettings(name, 0.1, "linear", 1e-4, 0.9, 0)
    optimizer = build_optimizer(model, recipe, 0.1)
    assert name == "lars" or all(group["fused"] for group in optimizer.param_groups)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


@pytest.mark.parametrize("micro", [False, True])
def test_a_bare_step_of_bench(
    raw: Batch, data: ContrastiveDataModule, model: SimCLR, micro: bool
) -> None:
    put(model, META)
    trainer = quiet()
    recipe = OptimizerSettings("sgd", 0.1, "linear", 1e-4, 0.9, 0)
    trainer.optimizers = [build_optimizer(model, recipe, 0.1)]
    bare = BareStep(trainer, model, batch_of(raw, data, META, micro))
    bare()
    bare.loss_alone()


# validate, test, predict --------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CUDA, META])
def test_an_evaluation_step(
    raw: Batch,
    data: ContrastiveDataModule,
    model: SimCLR,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simclr, "sum_over_ranks", lambda rows: ROWS)  # a number for the log
    put(model.eval(), device)
    batch = data.make_clean(raw.to(device), views=True)
    outputs = [model.validation_step(batch, 0), model.predict_step(batch, 0)]
    tensors = [part for output in outputs for part in output.values()]
    assert {part.device for part in tensors if isinstance(part, Tensor)} == {device}


# linear, knn, report ------------------------------------------------------------------------------


@pytest.fixture
def asked(raw: Batch, data: ContrastiveDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that was made before: to make it, numbers are looked at."""
    loader = data.evaluation_loader("val", "clean")
    monkeypatch.setattr(data, "evaluation_loader", lambda *args, **kwargs: loader)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("device", [CUDA, META])
def test_features_of_a_frozen_encoder(
    data: ContrastiveDataModule, model: SimCLR, device: torch.device
) -> None:
    found = encode(put(model.encoder, device), data, "val")
    assert {part.device.type for part in found} == {"cpu"}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("device", [CUDA, META])
def test_features_of_crops(
    data: ContrastiveDataModule, model: SimCLR, device: torch.device
) -> None:
    """`linear --augment`."""
    found = encode_crops(put(model.encoder, device), data, torch.arange(30), 2)
    assert found.shape == (30, 8)
    assert found.device == device


@pytest.mark.parametrize("device", [CUDA, META])
def test_a_linear_evaluation(device: torch.device) -> None:
    """Labels stay where they are."""
    features, labels = torch.rand(40, 6, device=device), torch.zeros(40, dtype=torch.int64)
    recipe = Settings(steps=3, epochs=1)
    heads = train_heads(lambda epoch: features, labels, 3, recipe.grid, recipe)
    top1, loss = judge(heads, Rows(features, labels))
    assert {top1.device, loss.device} == {device}


@pytest.mark.parametrize("device", [CUDA, META])
def test_neighbours_in_a_bank_that_lies_in_memory(device: torch.device) -> None:
    queries, bank, labels = torch.rand(9, 6, device=device), torch.rand(30, 6), torch.zeros(30)
    similarity, place = neighbours(queries, bank, 5, torch.arange(3, 30))
    votes = labels.long().to(device)[place]
    assert vote(similarity, votes, 0.1, 4).device == device


@pytest.mark.parametrize("device", [CUDA, META])
def test_a_reports_snapshot(
    data: ContrastiveDataModule,
    model: SimCLR,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, "candidates", lambda labels: torch.arange(20))
    network = put(model.eval(), device)
    found, projections = snapshot._encode(network, data, "val", 50, torch.no_grad, quiet=True)
    assert {part.device.type for part in (*found, projections)} == {"cpu"}
    assert projections.shape == (2, 20, 8)


# finetune -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CUDA, META])
def test_a_step_of_finetune(
    raw: Batch, data: ContrastiveDataModule, tuning: FineTuning, device: torch.device
) -> None:
    put(tuning, device)
    there = raw.to(device)
    images = LabelledImages(data.views.one(there.images, there.index, 0), there.labels)
    loss = tuning.training_step(images, 0)
    assert loss.device == device
    if device == META:
        loss.backward()
        build_optimizer(tuning, tuning.optimization, 0.1).step()
    tuning.eval()
    tuning.on_validation_epoch_start()
    tuning.validation_step(
        LabelledImages(data.make_clean(there, views=False).clean, there.labels), 0
    )
    assert tuning.hits.counts.device == device
