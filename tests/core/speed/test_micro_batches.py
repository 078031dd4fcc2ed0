"""Micro-batches: the whole batch's step in the memory of a part; alone, in runs, on ranks."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from commands import ENCODER_ARGS, QUIET
from PIL import Image
from ranks import ranks
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from simclr_pl import ContrastiveDataModule, NTXentLoss, OnlineProbe, SimCLR, SimCLRViews, UserError
from simclr_pl.core.batch import Batch, MicroBatches, StepOutput, Views
from simclr_pl.core.data.loaders import TrainLoader
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.model.batch_norm import globalise_batch_norm
from simclr_pl.core.speed.micro_batches import encode_in_parts

SIZE = 40
"""Images of a batch, where parts are encoded without a trainer."""


def batch() -> Batch:
    pixels = torch.randint(
        0, 256, (SIZE, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Batch(pixels, torch.arange(SIZE), torch.arange(SIZE), 3)


def in_parts(size: int, rank: int = 0, world: int = 1) -> list[Batch]:
    """The batch as the loader cuts it into micro-batches of so many images."""
    whole = batch()
    source = ArrayImages(whole.images, whole.labels)
    count = -(-SIZE // size)
    loader = TrainLoader(source, SIZE, rank, world, 0, lambda: 3, micro_batches=count)
    return Batch(*(column[loader.rows] for column in whole[:3]), 3).split(loader.parts)


def images(part: Batch) -> Tensor:
    """Both views in float64."""
    views = SimCLRViews(8, mean=(0.5,), std=(0.3,), jitter=0)
    return torch.cat(views(part.images, part.index, part.epoch)).double()


class Average(nn.BatchNorm2d):
    """Batch norm whose running statistics are plain averages."""

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=None)


def timms() -> nn.Module:
    """A ResNet with dropout and stochastic depth of its own."""
    import timm

    args = json.loads(ENCODER_ARGS) | {"drop_rate": 0.3, "drop_path_rate": 0.5}
    return timm.create_model("resnet10t", in_chans=1, num_classes=0, **args)


def plain(norm: Callable[[int], nn.Module], last: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), norm(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, 2), norm(8), nn.GELU()),
        *(nn.Flatten(), nn.Linear(32, 5), last or nn.Identity()),
    )


class Flagged(nn.Module):
    """Scales by what its first batch was, as data-dependent initialisation does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.scale = x.detach().std((0, 2, 3))
            self.ready.fill_(True)
        return x / self.scale[:, None, None]


class Bounded(nn.Module):
    """Bounds that are infinite until somebody sets them, as in timm's gemma4_vit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-self.bound, self.bound)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "no norm": partial(plain, lambda width: nn.Identity()),
    "group norm": partial(plain, partial(nn.GroupNorm, 2)),
    "batch norm": partial(plain, nn.BatchNorm2d),
    "batch norm by plain averages": partial(plain, Average),
    "batch norm without statistics": partial(
        plain, partial(nn.BatchNorm2d, track_running_stats=False)
    ),
    "batch norm that is frozen": lambda: plain(lambda width: nn.BatchNorm2d(width).eval()),
    "dropout": partial(plain, nn.BatchNorm2d, nn.Dropout(0.5)),
    "dropout and stochastic depth of timm": timms,
    # Its power iteration moves in each pass, and what it has come to scales the weights.
    "spectral norm": lambda: plain(
        lambda width: nn.Identity(), nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    ),
    "data-dependent initialisation": partial(plain, Flagged),
    "infinite constants": partial(plain, Bounded),
}
WITHOUT_BATCH_NORM = ("no norm", "group norm")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[name]().double()


def loss_of(features: Tensor) -> Tensor:
    """A loss in which each image meets each other."""
    return NTXentLoss(0.2)(*features.chunk(2))


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value (of what is not merely rounding)."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    scale = float(want.detach().double().abs().max().clamp(min=1e-4))
    difference = torch.where(got == want, 0, got.detach().double() - want.detach().double())
    return float(difference.abs().max()) / scale


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], limit: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert error(got[name], value) <= limit, (name, error(got[name], value))


def steps(
    encoder: nn.Module, parts: list[Batch], encode: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """What two steps give: features, loss, gradients, and buffers before and after backward."""
    told = {}
    for step in range(2):
        torch.manual_seed(step)
        encoder.zero_grad()
        features = encode(encoder, parts, images)
        told |= {f"{step} {n} before backward": b.clone() for n, b in encoder.named_buffers()}
        loss = loss_of(features)
        loss.backward()
        told |= {f"{step} features": features.detach(), f"{step} loss": loss.detach()}
        told |= {f"{step} {n}": p.grad for n, p in encoder.named_parameters()}
        told |= {f"{step} {n} after": b.clone() for n, b in encoder.named_buffers()}
    return told


def literally(
    encoder: nn.Module, parts: Sequence[Batch], images: Callable[[Batch], Tensor]
) -> Tensor:
    """What is promised, in the memory of all parts: each goes through a copy of the encoder."""
    twins = [copy.deepcopy(encoder) for _ in parts]
    for twin in twins:
        for name, parameter in encoder.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(owner), leaf, parameter)
    features = [twin(images(part)) for twin, part in zip(twins, parts, strict=True)]
    for name, buffer in encoder.named_buffers():
        ends = torch.stack([twin.get_buffer(name) for twin in twins])
        buffer.copy_(ends.mean(0) if ends.is_floating_point() else ends[0])
    pairs = [part.chunk(2) for part in features]
    return torch.cat([first for first, _ in pairs] + [second for _, second in pairs])


def at_once(
    encoder: nn.Module, parts: Sequence[Batch], images: Callable[[Batch], Tensor]
) -> Tensor:
    whole = Batch(*(torch.cat([part[i] for part in parts]) for i in range(3)), parts[0].epoch)
    return encoder(images(whole))


# Exactness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 20, SIZE, SIZE + 1])
@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_without_batch_norm_parts_are_the_whole_batch(name: str, size: int) -> None:
    want = steps(build(name), in_parts(SIZE), at_once)
    assert_same(steps(build(name), in_parts(size), encode_in_parts), want)


def test_features_of_three_views_come_view_by_view() -> None:
    def three(part: Batch) -> Tensor:
        two = images(part)
        return torch.cat([two, 2 * two[: len(part.labels)]])

    encoder = build(next(iter(WITHOUT_BATCH_NORM)))
    want = at_once(encoder, in_parts(SIZE), three)
    got = encode_in_parts(encoder, in_parts(7), three)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("size", [1, 7, SIZE])
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.long
def test_each_part_is_encoded_alone_and_buffers_move_once_by_the_mean(name: str, size: int) -> None:
    want = steps(build(name), in_parts(size), literally)
    assert_same(steps(build(name), in_parts(size), encode_in_parts), want)


def test_counters_move_by_one_a_step_and_nothing_moves_in_backward() -> None:
    encoder = build("batch norm")
    told = steps(encoder, in_parts(7), encode_in_parts)
    assert int(encoder[1].num_batches_tracked) == 2
    for name, value in told.items():
        if name.endswith(" after"):
            assert value.equal(told[name.removesuffix("after") + "before backward"])
    assert not told["0 1.running_mean after"].equal(told["1 1.running_mean after"])


def test_counters_of_half_precision_runs_move_by_one_too() -> None:
    """257 is 256 in bfloat16, a run's default type: 257 / 257 would be no step at all."""
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)).bfloat16()
    parts = [Batch(torch.rand(2, 1, 2, 2), *torch.zeros(2, 2), 0) for _ in range(257)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        encode_in_parts(encoder, parts, lambda part: part.images.bfloat16())
    finally:
        torch.set_default_dtype(torch.float32)
    assert int(encoder[1].num_batches_tracked) == 1


def test_without_gradients_the_features_are_the_same() -> None:
    one, other = build("batch norm"), build("batch norm")
    with torch.no_grad():
        got = encode_in_parts(one, in_parts(7), images)
    assert not got.requires_grad
    assert got.equal(encode_in_parts(other, in_parts(7), images))


def test_dropout_draws_other_masks_in_each_part() -> None:
    """Else the promise above would be kept by a generator that is always set back."""
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    part = batch().split([SIZE])[0]
    ones = torch.ones(2 * SIZE, 64)
    features = encode_in_parts(encoder, [part, part], lambda _: ones)
    first, second = features[:SIZE], features[SIZE : 2 * SIZE]
    assert not first.equal(second)


# Memory ------------------------------------------------------------------------------------------


class Alive:
    """Which tensors' memory somebody still holds."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def now(self) -> int:
        """Bytes of those that are alive."""
        self.seen = {k: (ref, size) for k, (ref, size) in self.seen.items() if not ref.expired()}
        return sum(size for _, size in self.seen.values())

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        ref = StorageWeakRef(storage)
        self.seen[ref.cdata] = (ref, storage.nbytes())
        self.peak = max(self.peak, self.now())

    def watch(self, network: nn.Module) -> None:
        for module in network.modules():
            module.register_forward_hook(lambda module, given, output: self.add(output))


@pytest.mark.parametrize("name", ["batch norm", "dropout and stochastic depth of timm"])
def test_activations_of_one_part_are_alive_at_a_time(name: str) -> None:
    peaks = {}
    for count in (1, 10):
        encoder, alive = build(name), Alive()
        alive.watch(encoder)
        loss_of(encode_in_parts(encoder, in_parts(SIZE // count), images)).backward()
        peaks[count] = alive.peak
    assert peaks[1] > 200_000
    assert peaks[10] < 0.15 * peaks[1], peaks  # a tenth, and all features


def test_images_of_one_part_are_alive_at_a_time() -> None:
    encoder, alive = build("batch norm"), Alive()
    made: list[int] = []

    def watched(part: Batch) -> Tensor:
        assert alive.now() == 0, "images of another part are still there"
        made.append(int(part.index[0]))
        views = images(part)
        alive.add(views)
        return views

    loss_of(encode_in_parts(encoder, in_parts(10), watched)).backward()
    # The last part is where backward begins: it needn't be made again.
    assert made == [0, 10, 20, 30, 20, 10, 0]


# Runs --------------------------------------------------------------------------------------------

FEW = {
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
}
GROUP_NORM = json.loads(ENCODER_ARGS) | {"norm_layer": "groupnorm1"}
BATCH_NORM = json.loads(ENCODER_ARGS)
IMAGES = 60
"""Images of a batch in runs."""


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(**(QUIET | FEW | {"precision": "64-true"} | options))


class Recording(SimCLR):
    """Keeps what each step gave, image by image, and its gradients."""

    def training_step(self, batch: Views | MicroBatches, batch_idx: int) -> StepOutput:
        output = super().training_step(batch, batch_idx)
        index = batch.index.chunk(2)[0]
        self.kinds = [*getattr(self, "kinds", []), type(batch)]
        self.steps = [*getattr(self, "steps", []), {"index": index, **output}]
        return output

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        grads = {n: p.grad.clone() for n, p in self.named_parameters() if p.requires_grad}
        self.steps[-1]["gradients"] = grads


def simclr(micro_batch_size: int | None, **options: Any) -> Recording:
    plain = {
        "encoder": "resnet10t", "encoder_args": GROUP_NORM, "optimizer": "sgd", "seed": 1,
        "learning_rate": 0.5, "warmup_epochs": 0, "projection_dim": 16, "temperature": 0.2,
    }  # fmt: skip
    return Recording(micro_batch_size=micro_batch_size, **(plain | options))


def train(
    micro_batch_size: int | None, data: dict[str, Any] | None = None, **options: Any
) -> dict[str, Tensor]:
    """Two steps: everything they gave, by image where it belongs to one, and the weights."""
    keys = {*QUIET, *FEW, "precision", "gradient_clip_val", "callbacks", "devices", "strategy"}
    model = simclr(micro_batch_size, **{k: v for k, v in options.items() if k not in keys})
    run = trainer(**{k: v for k, v in options.items() if k in keys})
    run.fit(model, ContrastiveDataModule(**({"batch_size": IMAGES, "seed": 1} | (data or {}))))
    parts = micro_batch_size is not None and micro_batch_size < (data or {}).get("batch_size", 60)
    assert set(model.kinds) == {MicroBatches if parts else Views}
    told = {f"logged {n}": torch.as_tensor(v) for n, v in run.callback_metrics.items()}
    for number, step in enumerate(model.steps):
        order = step["index"].argsort()
        told |= {f"{number} gradient {n}": g for n, g in step["gradients"].items()}
        told |= {f"{number} loss": step["loss"].detach(), f"{number} index": step["index"][order]}
        for name in ("features", "projections", "labels", "positive_rank"):
            first, second = step[name].chunk(2)
            told[f"{number} {name}"] = torch.cat([first[order], second[order]])
    return told | {n: v.clone() for n, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return train(None)


@pytest.mark.parametrize("size", [1, 7, 50, IMAGES, IMAGES + 1])
@pytest.mark.long
def test_steps_of_a_run_with_group_norm_are_those_of_the_whole_batch(
    whole: dict[str, Tensor], size: int
) -> None:
    assert_same(train(size), whole)


def test_with_batch_norm_micro_batches_are_another_recipe() -> None:
    """What they normalise by: the comparisons above would notice."""
    one, parts = (train(size, encoder_args=BATCH_NORM) for size in (None, 20))
    assert error(parts["0 features"], one["0 features"]) > 1e-3
    name = "encoder.bn1.num_batches_tracked"
    assert int(parts[name]) == int(one[name]) == 2
    # Of the same images, in the first step: the mean of three parts is the mean of the whole.
    first, second = (
        train(size, encoder_args=BATCH_NORM, limit_train_batches=1) for size in (None, 20)
    )
    assert error(second["encoder.bn1.running_mean"], first["encoder.bn1.running_mean"]) < 1e-12


WAYS: dict[str, dict[str, Any]] = {
    "gradients that are clipped": {"gradient_clip_val": 0.01},
    "LARS": {"optimizer": "lars", "weight_decay": 1e-4},
}


@pytest.mark.parametrize("way", WAYS)
def test_what_the_optimiser_does_is_as_with_the_whole_batch(
    whole: dict[str, Tensor], way: str
) -> None:
    got, want = train(7, **WAYS[way]), train(None, **WAYS[way])
    assert_same(got, want)
    assert error(want["encoder.conv1.weight"], whole["encoder.conv1.weight"]) > 1e-6


def test_the_probe_learns_as_from_the_whole_batch() -> None:
    probes = {size: OnlineProbe(learning_rate=0.01) for size in (None, 7)}
    told = {
        size: train(size, callbacks=[probe], limit_val_batches=1) for size, probe in probes.items()
    }
    assert {"logged probe/train_top1", "logged probe/val_top1"} <= told[7].keys()
    assert_same(told[7], told[None])
    heads = [dict(probe.head.state_dict()) for probe in probes.values() if probe.head]
    assert_same(heads[1], heads[0])


PRECISIONS = {  # 16-mixed is missing: Lightning takes bf16-mixed in its place on a CPU
    "bf16-mixed": 1e-2,
    "bf16-true": 2e-2,
    "16-true": 1e-2,
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_in_other_precisions_steps_agree_to_their_rounding(precision: str) -> None:
    want, got = (train(size, precision=precision, limit_train_batches=1) for size in (None, 7))
    assert got["0 features"].dtype == want["0 features"].dtype
    for kind in ("loss", "gradient"):
        a, b = (
            torch.cat([v.double().flatten() for n, v in told.items() if n.startswith(f"0 {kind}")])
            for told in (got, want)
        )
        assert float((a - b).norm() / b.norm()) < PRECISIONS[precision], kind
    assert math.isfinite(float(got["logged train/grad_norm"]))


# A run's precision is torch's default type in a step, but no longer in its backward.


class Ramp(nn.Module):
    """Makes a constant in each pass, of torch's default type."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0.1, 1, x.shape[1])[:, None, None]


def test_constants_made_in_the_second_pass_have_the_type_of_the_first() -> None:
    encoder = plain(lambda width: Ramp()).double()
    torch.set_default_dtype(torch.float64)
    try:
        want = torch.autograd.grad(
            loss_of(literally(encoder, in_parts(7), images)), list(encoder.parameters())
        )
        loss = loss_of(encode_in_parts(encoder, in_parts(7), images))
    finally:
        torch.set_default_dtype(torch.float32)
    loss.backward()
    assert torch.get_default_dtype() == torch.float32
    for parameter, grad in zip(encoder.parameters(), want, strict=True):
        assert error(parameter.grad, grad) < 1e-12


# Evaluation --------------------------------------------------------------------------------------


def counted(encoder: nn.Module) -> list[int]:
    """How many images each pass of the encoder is given, from now on."""
    rows: list[int] = []
    encoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    return rows


def evaluated(model: SimCLR) -> tuple[dict[str, Tensor], list[int]]:
    """Validation's and prediction's numbers, and how many rows the encoder was given at a time."""
    rows, data = counted(model.encoder), ContrastiveDataModule(batch_size=IMAGES)
    run = trainer(limit_val_batches=2, limit_predict_batches=2)
    (logged,) = run.validate(model, data, verbose=False)
    outputs = run.predict(model, data)
    told = {name: torch.tensor(value) for name, value in logged.items()}
    return told | {"features": torch.cat([o["features"] for o in outputs or []])}, rows


@pytest.mark.long
def test_evaluation_goes_in_parts_as_well_and_gives_the_same(tmp_path: Path) -> None:
    run, path = trainer(), tmp_path / "a.ckpt"
    run.fit(simclr(7, encoder_args=BATCH_NORM), ContrastiveDataModule(batch_size=IMAGES))
    run.save_checkpoint(path)
    parts = SimCLR.load_from_checkpoint(path)
    whole = SimCLR.load_from_checkpoint(path, micro_batch_size=None)
    (got, rows), (want, all_rows) = evaluated(parts), evaluated(whole)
    assert max(rows) == 14  # both views of 7, or 14 clean images
    assert max(all_rows) == 98  # both views of 49: validation's batches are of equal size
    assert_same(got, want, 1e-12)


def test_a_loaded_module_encodes_in_parts_without_a_trainer(tmp_path: Path) -> None:
    run, path = trainer(limit_train_batches=1), tmp_path / "a.ckpt"
    run.fit(simclr(7, encoder_args=BATCH_NORM), ContrastiveDataModule(batch_size=IMAGES))
    run.save_checkpoint(path)
    loaded = SimCLR.load_from_checkpoint(path).double()
    rows = counted(loaded.encoder)
    clean = torch.rand(30, 1, 8, 8)
    features = loaded.eval()(clean)
    assert rows == [14, 14, 2]
    assert error(features, loaded.encoder(clean.double())) < 1e-12
    loaded.train()(clean)
    assert rows[-1] == 30  # a part of one's own choice: batch norm is to see all of it


# Data --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(24):
        pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    return tmp_path


@pytest.mark.processes
def test_crops_that_come_from_workers_are_views_in_parts(folder: Path) -> None:
    data = {
        "dataset": "folder", "root": str(folder), "batch_size": 10, "image_size": 8,
        "num_workers": 1,
    }  # fmt: skip
    assert_same(train(3, data, limit_train_batches=1), train(None, data, limit_train_batches=1))


@pytest.mark.long
def test_a_resume_continues_to_the_bit(tmp_path: Path) -> None:
    """In mid-epoch, with dropout, stochastic depth and batch norm."""
    noisy = BATCH_NORM | {"drop_rate": 0.3, "drop_path_rate": 0.3}

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    straight, resumed = (simclr(7, encoder_args=noisy) for _ in range(2))
    plain = {"precision": "32-true", "limit_train_batches": 3}
    trainer(**plain, callbacks=[Save()]).fit(straight, ContrastiveDataModule(batch_size=IMAGES))
    trainer(**plain).fit(
        resumed, ContrastiveDataModule(batch_size=IMAGES), ckpt_path=tmp_path / "1.ckpt"
    )
    assert len(resumed.steps) == 2
    for name, value in straight.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name


class Hands(ContrastiveDataModule):
    """Another data module, which knows nothing of micro-batches."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Any:
        return self.make_views(batch)


def test_a_data_module_that_hands_out_whole_batches_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.micro_batch_size needs .*MicroBatches, as Contra"):
        trainer().fit(simclr(20), Hands(batch_size=IMAGES))
    trainer(limit_train_batches=1).fit(simclr(IMAGES), Hands(batch_size=IMAGES))


@pytest.mark.parametrize("size", [0, -1])
def test_less_than_an_image_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=rf"model\.micro_batch_size is {size}, .* at least 1"):
        SimCLR(micro_batch_size=size)


# torch.compile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 7])
@pytest.mark.parametrize("name", ["batch norm", "dropout"])
@pytest.mark.long
def test_a_compiled_encoder_works_and_is_compiled_once(name: str, size: int) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    want = steps(build(name), in_parts(size), encode_in_parts)
    encoder = build(name)
    encoder.compile(backend=counter)
    got = steps(encoder, in_parts(size), encode_in_parts)
    compiled = counter.frame_count
    assert compiled >= 1
    assert_same(got, want)
    steps(encoder, in_parts(size), encode_in_parts)
    assert counter.frame_count == compiled
    torch._dynamo.reset()


# Several ranks -----------------------------------------------------------------------------------


def on_this_rank(name: str, size: int) -> dict[str, Tensor]:
    """Two steps of this rank's share: features by image, averaged gradients, and buffers."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if world > 1 else 0
    parts = in_parts(size, rank, world)
    encoder = globalise_batch_norm(build(name), torch.device("cpu"))
    told = {}
    for step in range(2):
        encoder.zero_grad()
        features = encode_in_parts(encoder, parts, images)
        loss_of(features).backward()
        for parameter in encoder.parameters():
            if world > 1:
                dist.all_reduce(parameter.grad)
            parameter.grad /= world  # as DDP does
        told |= {f"{step} {n}": p.grad.clone() for n, p in encoder.named_parameters()}
        told |= {f"{step} {n}": b.clone() for n, b in encoder.named_buffers()}
        told[f"{step} features"] = features.detach()
    return told | {"index": torch.cat([part.index for part in parts])}


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["batch norm", "batch norm by plain averages"])
def test_uneven_ranks_encode_the_same_micro_batches(name: str, world: int) -> None:
    """Micro-batches of 6 or 7 images on three ranks are 2, 2 and 2 or 2, 2 and 3."""
    want = on_this_rank(name, 7)
    told = ranks(world, on_this_rank, name, 7)
    index = torch.cat([each.pop("index") for each in told])
    assert sorted(index.tolist()) == want.pop("index").tolist()
    for step in range(2):
        features = [each.pop(f"{step} features").chunk(2) for each in told]
        joined = torch.cat([f for f, _ in features]), torch.cat([s for _, s in features])
        ordered = torch.cat([view[index.argsort()] for view in joined])
        assert error(ordered, want.pop(f"{step} features")) < 1e-9
    for each in told:
        assert_same(each, want)


def train_on_ranks(options: dict[str, Any]) -> dict[str, Tensor]:
    world = dist.get_world_size() if dist.is_initialized() else 1
    strategy = "ddp" if world > 1 else "auto"
    return train(7, {"batch_size": 27}, devices=world, strategy=strategy, **options)


@pytest.mark.ddp
def test_a_run_on_uneven_ranks_is_that_of_one_process() -> None:
    """27 images in four micro-batches of 7 or 6, on two ranks: 13 images and 14."""
    options = {"encoder_args": BATCH_NORM}
    want = train_on_ranks(options)
    told = ranks(2, train_on_ranks, options, timeout=120)
    for step in range(2):
        index = torch.cat([each[f"{step} index"] for each in told])
        order = index.argsort()
        assert index[order].equal(want.pop(f"{step} index"))
        for name in ("features", "projections", "labels", "positive_rank"):
            halves = [each.pop(f"{step} {name}").chunk(2) for each in told]
            joined = [torch.cat(view)[order] for view in zip(*halves, strict=True)]
            assert error(torch.cat(joined), want.pop(f"{step} {name}")) < 1e-9, name
        losses = torch.stack([each.pop(f"{step} loss") for each in told])
        assert error(losses.mean(), want.pop(f"{step} loss")) < 1e-9
    for each in told:
        rest = {name: value for name, value in each.items() if not name.endswith("index")}
        assert_same(rest, want)
