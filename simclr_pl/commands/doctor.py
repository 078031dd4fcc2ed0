"""`doctor`: what a recipe will do on this machine, and what looks wrong about it."""

import sys
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import lightning as L

from simclr_pl.cluster.memory import PeakMemory
from simclr_pl.cluster.out_of_memory import explained
from simclr_pl.commands.bench.bench import PACKABLE, available_cores, leave_out_idle
from simclr_pl.commands.bench.ceilings import synchronise
from simclr_pl.commands.stats import bad_lines, copy_lines, look_lines
from simclr_pl.core.data import loaders
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.model.encoder import SMALL_IMAGE
from simclr_pl.core.model.objective import NTXent
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.images.survey import Survey, survey
from simclr_pl.images.workers.images import WorkerImages
from simclr_pl.images.workers.room import little_room
from simclr_pl.run.derived import derived
from simclr_pl.tracking.wandb_mode import Mode, logged_in, resolve_mode

STEPS = 5
"""Steps that are trained; the first one, which waits for memory and compilers, doesn't count."""

TEMPERATURES = (0.05, 1.0)
"""The usual range of the temperature: papers have 0.07 to 0.5."""

BATCHES = (64, 8192)
"""The usual range of the global batch, in images: the paper has 256 to 8,192."""

GRAY_JITTER = 0.5
"""Jitter above which gray images lose too much: brightness and contrast are all that they have."""


def for_few_steps(trainer: Any) -> None:
    """Makes a configuration of `fit` one that ends after a few steps and writes nothing.

    Args:
        trainer: the configuration's part of that name; changed in place.
    """
    trainer.min_epochs, trainer.min_steps, trainer.fast_dev_run = 0, 0, False
    trainer.limit_val_batches, trainer.max_time = 0, None
    trainer.enable_progress_bar, trainer.profiler = False, None


class _FewSteps(L.Callback):
    """Trains a few steps, or none on several devices, and keeps what is known before them."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.rows: dict[str, Any] = {}
        self.batches = self.steps = 0
        self.times: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the table of derived values."""
        assert isinstance(pl_module, SimCLR)
        data: ContrastiveDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.rows = derived(trainer, pl_module, data, self.world)
        self.batches = int(trainer.num_training_batches)
        self.steps = int(trainer.estimated_stepping_batches)
        trainer.should_stop = self.world > 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Notes the time, and ends after `STEPS`."""
        synchronise(trainer.strategy.root_device)
        self.times.append(perf_counter())
        trainer.should_stop = len(self.times) >= STEPS or self.world > 1


def doctor(
    trainer: L.Trainer,
    model: SimCLR,
    data: ContrastiveDataModule,
    *,
    world: int,
    images: int,
    wandb: Mode,
) -> None:
    """Prints what the recipe does here, and a line for whatever looks wrong.

    Args:
        trainer: of `fit`, on one device.
        model: new.
        data: new.
        world: devices that `fit` would train on.
        images: how many images are looked at, about.
        wandb: the recipe's mode of W&B.

    Raises:
        UserError: `fit` would fail, with this sentence.
    """
    check(images >= 1, "images", images, "at least 1")
    data.prepare_data()
    data.setup("fit")
    whole = data.whole
    splits = {"train": whole.train, "val": whole.val, "test": whole.test}
    if whole.held is not None:  # validation images are some of train's
        del splits["val"]
    there = {split: source for split, source in splits.items() if source is not None}
    most = data.reading["max_pixels"]
    found = survey(there, images, data.num_workers, most, whole.held)
    _say([*look_lines(found), *bad_lines(found), *copy_lines(found)])
    _refuse_bad(found, data)
    loaders.check_batch(data.batch_size, world)
    loaders.count_micro_batches(data.batch_size, model.micro_batch_size, world)
    data.val_dataloader()
    leave_out_idle(trainer)
    few = _FewSteps(world)
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(few)
    with PeakMemory(trainer.strategy.root_device) as peak, explained(trainer):
        trainer.fit(model, data)
    rows = {**few.rows, **_measured(few, peak, data.batch_size)}
    width = max(map(len, rows))
    _say([f"  {name:<{width}}  {value}" for name, value in rows.items()])
    wrong = list(warnings(model, data, found, few.batches, world))
    mode = resolve_mode(wandb)
    if mode == "online" and not logged_in():
        wrong.append(
            "W&B is to be online, but nobody is logged in: wandb login, or --wandb offline"
        )
    elif mode == "offline":
        _say(["note: W&B is offline (wandb login uploads; --wandb off writes none)"])
    _say([f"warning: {line}" for line in wrong] or ["nothing looks wrong"])


def _say(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _refuse_bad(found: Survey, data: ContrastiveDataModule) -> None:
    """Raises what `fit` would raise of images that cannot be read."""
    # (A training reads no image of test.)
    bad = [each for each in found.bad if each.split != "test"]
    if not bad:
        return
    train = data.whole.train
    if data.reading["on_bad_image"] == "error" or not isinstance(train, WorkerImages):
        raise UserError(bad[0].sentence)
    for each in bad:
        if train.unreadable is not None:
            train.unreadable.add(each.name, each.why)


def _measured(few: _FewSteps, peak: PeakMemory, batch: int) -> dict[str, str]:
    """Rows about time and memory."""
    if few.world > 1:
        return {"a step": "not measured: bench measures one device's share of several"}
    rows = {}
    if len(few.times) > 1:
        step = (few.times[-1] - few.times[0]) / (len(few.times) - 1)
        epoch, all_steps = _time(few.batches * step), _time(few.steps * step)
        rows["a step"] = f"{1e3 * step:.4g} ms ({batch / step:,.0f} images/s)"
        rows["time"] = (
            f"an epoch {epoch}, all {few.steps} steps {all_steps} (without validation and "
            "checkpoints)"
        )
    if peak.bytes is not None:
        rows["peak memory"] = f"{(peak.before + peak.bytes) / 1e9:.2f} GB"
    return rows


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def warnings(
    model: SimCLR, data: ContrastiveDataModule, found: Survey, batches: int, world: int
) -> Iterator[str]:
    """Yields a sentence for whatever looks wrong, each with the option to change.

    Args:
        model: built for the data.
        data: set up.
        found: in a sample of its images.
        batches: of an epoch.
        world: devices.
    """
    side, batch = data.image_size or 0, data.batch_size
    if model.hparams["stem"] == "imagenet" and side <= SMALL_IMAGE:
        yield (
            f"the ImageNet stem shrinks images of {side} px to {-(-side // 4)} px at once: give "
            "--model.stem auto"
        )
    yield from _of_gray(data, found)
    low, high = TEMPERATURES
    temperature = model.hparams["temperature"]
    if isinstance(model.objective, NTXent) and not low <= temperature <= high:
        yield (
            f"the temperature {temperature:g} is out of the usual range, {low:g} to {high:g}: give "
            "--model.temperature 0.1 to 0.5"
        )
    if not BATCHES[0] <= batch <= BATCHES[1]:
        yield (
            f"a global batch of {batch} images is out of the usual range, {BATCHES[0]} to "
            f"{BATCHES[1]}: give another --data.batch_size"
        )
    if batches < 2:
        yield (
            f"an epoch has {batches} batch, and images that do not fit into it sit out: give a "
            "smaller --data.batch_size"
        )
    if not data.num_classes:
        given = data.reading["labels"] == "given"
        option = "one folder a class, or a manifest's labels" if given else "--data.labels given"
        yield f"no image has a label, so that the probe and kNN say nothing: give {option}"
    yield from _of_workers(data, batches, world)
    if found.across:
        yield (
            f"{len(found.across)} images lie in several splits, which scores too well: remove the "
            "copies, or give a manifest with groups (--data.dataset manifest)"
        )
    if found.bad:
        yield (
            f"{len(found.bad)} images cannot be read, which an evaluation does not forgive unless "
            "--data.on_bad_image is skip: remove them"
        )


def _of_gray(data: ContrastiveDataModule, found: Survey) -> Iterator[str]:
    """Sentences about colours of images that have none."""
    if not found.kinds or not all(kind.startswith("gray") for kind in found.kinds):
        return
    jitter, grayscale = data.views.jitter, data.views.grayscale
    if jitter > GRAY_JITTER:
        yield (
            f"all images are gray, and jitter {jitter:g} changes the little that they have, "
            f"brightness and contrast, by up to {0.8 * jitter:.0%}: give --data.jitter 0.4"
        )
    if grayscale:
        yield (
            f"all images are gray, and grayscale {grayscale:g} does nothing: give "
            "--data.grayscale 0"
        )


def _of_workers(data: ContrastiveDataModule, batches: int, world: int) -> Iterator[str]:
    """Sentences about processes that decode."""
    train = data.splits.train
    if not isinstance(train, WorkerImages):
        return
    cores, workers = available_cores(), data.num_workers * world
    if workers > cores:
        pack = ", or pack the images (python -m simclr_pl pack)" * (data.dataset in PACKABLE)
        yield (
            f"{workers} worker processes share {cores} cores: give --data.num_workers "
            f"{max(1, cores // world)}{pack}"
        )
    elif not workers:
        yield "no worker decodes, so that each step waits for images: give --data.num_workers 2"
    share = -(-data.batch_size // world)
    little = little_room(train.batch_bytes(share, "views"), data.num_workers, batches, world)
    if little is not None:
        yield little
