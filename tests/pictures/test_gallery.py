"""Gallery: report's pictures in real W&B runs, and training is left alone."""

import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import wandb
from commands import DRAWING, NARROW, QUIET, fit, run
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import SingleDeviceStrategy
from monitored import Other, digits, trainer
from noise import write_images
from offline import history, records
from PIL import Image
from ranks import ranks
from run_files import checkpoint

from simclr_pl import ContrastiveDataModule, SimCLR, UserError
from simclr_pl.pictures import gallery
from simclr_pl.pictures.gallery import Gallery

EVERY = {"neighbours", "confusion", "map", "similarities"}


class Album(Logger):
    """A logger that takes images, and keeps them."""

    name, version = "album", ""  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[int, str, Image.Image]] = []

    def log_image(self, key: str, images: list[Image.Image], step: int) -> None:
        (image,) = images
        self.images.append((step, key.removeprefix("pictures/"), image))

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def named(self, step: int) -> set[str]:
        """Names of the pictures of a step."""
        return {name for at, name, _ in self.images if at == step}


def simclr() -> SimCLR:
    """With layers that draw random numbers in training."""
    args = NARROW | {"drop_rate": 0.3}
    return SimCLR("resnet10t", args, optimizer="sgd", warmup_epochs=0, seed=1)


def album_of(
    module: L.LightningModule,
    *callbacks: L.Callback,
    data: ContrastiveDataModule | None = None,
    **options: Any,
) -> Album:
    """What a run of two epochs of two steps leaves in its album."""
    album = Album()
    short = {"max_epochs": 2, "limit_train_batches": 2, "logger": album, "log_every_n_steps": 1}
    trainer(*callbacks, **{**short, **options}).fit(module, data or digits())
    return album


@pytest.fixture
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*args: Any, **kwargs: Any) -> None:
        pytest.fail("something was encoded")  # no Exception, which a gallery would survive

    monkeypatch.setattr(gallery, "snap", drawn)


def test_an_error_in_a_picture_is_said_once_and_survived(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("Expected end of text, found '$'")

    monkeypatch.setattr(gallery, "snap", broken)
    module = simclr()
    assert album_of(module, Gallery(1)).images == []
    assert module.trainer.global_step == 4
    sentence = (
        "warning: no pictures (ValueError: Expected end of text, found '$'); training goes on"
    )
    assert capsys.readouterr().out.count(sentence) == 1


# What is logged -----------------------------------------------------------------------------------


def test_an_offline_run_holds_the_very_pictures_that_report_draws(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    try:
        fit(directory, "--wandb", "offline", "--trainer.max_epochs", 3, *_every(2))
        wandb.finish()
    finally:
        wandb.teardown()
    (found,) = records(directory)
    logged = [
        (
            row["trainer/global_step"],
            row["epoch"],
            key[len("pictures/") : -len(".filenames")],
            value,
        )
        for row in history(found)
        for key, value in row.items()
        if key.startswith("pictures/") and key.endswith(".filenames")
    ]
    assert {(step, epoch, name) for step, epoch, name, _ in logged} == {
        *((3, 1, name) for name in EVERY | {"views"}),
        *((5, 2, name) for name in EVERY),
    }
    (files,) = directory.glob("wandb/offline-run-*/files")
    assert len(list(files.rglob("*.png"))) == len(logged)
    assert run("report", directory).code == 0
    for step, _, name, (file,) in logged:
        if step == 5 or name == "views":
            with (
                Image.open(files / file) as mine,
                Image.open(directory / "pictures" / f"{name}.png") as reported,
            ):
                assert np.array_equal(np.asarray(mine), np.asarray(reported)), name


def _every(epochs: int) -> tuple[str, ...]:
    return ("--pictures.every_n_epochs", str(epochs))


@pytest.mark.long
def test_pictures_come_when_they_are_due_and_after_the_last_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = []
    snap = gallery.snap

    def spy(*args: Any, **kwargs: Any) -> Any:
        snapshot = snap(*args, **kwargs)
        assert snapshot is not None
        said.append(snapshot.when)
        return snapshot

    monkeypatch.setattr(gallery, "snap", spy)
    figures = plt.get_fignums()
    album = album_of(simclr(), Gallery(2), max_epochs=3)
    assert album.named(3) == EVERY | {"views"}
    assert album.named(5) == EVERY
    assert {step for step, _, _ in album.images} == {3, 5}
    assert said == ["epoch 2 (step 4), seed 1", "epoch 3 (step 6), seed 1"]
    assert plt.get_fignums() == figures  # pyplot isn't asked to keep anything


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.long
def test_it_draws_in_the_run_s_precision(precision: str) -> None:
    assert album_of(simclr(), Gallery(), precision=precision).named(3) == EVERY | {"views"}


@pytest.mark.long
def test_a_module_without_a_projector_gets_no_similarities() -> None:
    class Bare(Other):
        def __init__(self) -> None:
            super().__init__()
            self.head = self.projector
            del self.projector

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.head(self(batch.views)).square().mean()

    assert album_of(Bare(), Gallery()).named(3) == EVERY - {"similarities"} | {"views"}


@pytest.mark.processes
def test_unlabelled_files_get_what_needs_no_class_and_their_workers_end(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 60, 9, 11)
    data = ContrastiveDataModule("folder", str(folder), 16, image_size=8, num_workers=1)
    workers = []

    class Count(L.Callback):
        def on_validation_start(self, *args: Any) -> None:
            workers.append(len(multiprocessing.active_children()))

        on_train_epoch_end = on_validation_start

    album = album_of(simclr(), Count(), Gallery(1), data=data)
    assert album.named(3) == EVERY - {"confusion"}
    assert album.named(1) == EVERY - {"confusion"} | {"views"}
    # At the start of an epoch's validation its own workers may not be there yet.
    assert workers[1] == workers[2] == workers[3]
    assert not multiprocessing.active_children()


# Training is left alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("build", [simclr, Other], ids=["simclr", "another module"])
@pytest.mark.long
def test_training_takes_the_same_course_to_the_bit(build: Callable[[], L.LightningModule]) -> None:
    """`Other` draws from torch's generator, and has a part in eval mode of its own."""

    def course(*callbacks: L.Callback) -> tuple[dict[str, Any], list[Any]]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the one that must be left alone
        module = build()
        torch.manual_seed(0)
        album = album_of(module, *callbacks)
        assert bool(album.images) == bool(callbacks)
        states = [random.getstate(), torch.get_rng_state().tolist()]
        states.append([str(part) for part in np.random.get_state()])  # noqa: NPY002
        modes = [part.training for part in module.modules()]
        return module.state_dict(), [*states, modes]

    (plain, before), (watched, after) = course(), course(Gallery(1))
    assert plain.keys() == watched.keys()
    assert all(value.equal(watched[name]) for name, value in plain.items())
    assert before == after


def _on_a_rank(*callbacks: L.Callback) -> tuple[int, list[str], dict[str, Any]]:
    model, album = simclr(), Album()
    options = {**QUIET, "logger": album, "max_epochs": 2, "limit_train_batches": 2}
    own = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    fitted = L.Trainer(callbacks=list(callbacks), **{**options, **own})
    fitted.fit(model, digits())
    names = [name for _, name, _ in album.images]
    return fitted.global_rank, names, {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.mark.ddp
def test_of_two_ranks_the_first_draws_and_neither_trains_otherwise() -> None:
    first, second = ranks(2, _on_a_rank, Gallery(1), timeout=120)
    plain, _ = ranks(2, _on_a_rank, timeout=120)
    assert sorted(first[1]) == sorted([*EVERY, *EVERY, "views"])
    assert (second[0], second[1], plain[1]) == (1, [], [])
    for rank in (first, second):
        assert all(np.array_equal(value, plain[2][name]) for name, value in rank[2].items())


# When nothing is drawn ----------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_drawn")
def test_nothing_is_encoded_where_nobody_takes_images(tmp_path: Path) -> None:
    class Numbers(Album):
        log_image: Any = property()  # as if it weren't there

    trainer(Gallery(1), max_epochs=1, limit_train_batches=1, log_every_n_steps=1).fit(
        simclr(), digits()
    )
    loud = trainer(
        Gallery(1), max_epochs=1, limit_train_batches=1, log_every_n_steps=1, logger=Numbers()
    )
    loud.fit(simclr(), digits())
    fit(tmp_path / "run", *_every(1))  # W&B is off


@pytest.mark.usefixtures("nothing_is_drawn")
def test_nothing_is_drawn_in_a_rehearsal() -> None:
    album_of(simclr(), Gallery(1), fast_dev_run=True)


@pytest.mark.usefixtures("nothing_is_drawn")
def test_nothing_is_drawn_before_training_and_outside_of_it() -> None:
    album, model = Album(), simclr()
    fitted = trainer(
        Gallery(0),
        max_epochs=1,
        limit_train_batches=1,
        log_every_n_steps=1,
        logger=album,
        num_sanity_val_steps=1,
    )
    fitted.fit(model, digits())
    again = trainer(Gallery(1), logger=album)
    again.validate(model, digits(), verbose=False)
    assert album.images == []


@pytest.mark.usefixtures("nothing_is_drawn")
def test_a_strategy_that_may_shard_the_module_is_left_alone() -> None:
    class Sharded(SingleDeviceStrategy):
        pass

    assert album_of(simclr(), Gallery(1), strategy=Sharded("cpu")).images == []


def test_features_that_are_not_finite_are_not_drawn() -> None:
    class Broken(Other):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = super().forward(images)
            return features if self.training else features * torch.nan

    assert album_of(Broken(), Gallery()).images == []


def test_the_command_line_names_it_and_a_resume_may_change_it(tmp_path: Path) -> None:
    assert "pictures.every_n_epochs is -1" in run("fit", *_every(-1)).sentence
    with pytest.raises(UserError, match=r"pictures\.every_n_epochs is -1"):
        Gallery(-1)
    directory = tmp_path / "run"
    fit(directory, "--model.encoder_args", DRAWING)
    assert "pictures:\n  every_n_epochs: 50" in (directory / "config.yaml").read_text()
    fit(directory, "--model.encoder_args", DRAWING, "--resume", *_every(1), *_three_epochs())
    assert checkpoint(directory)["epoch"] == 2


def _three_epochs() -> tuple[str, ...]:
    return ("--trainer.max_epochs", "3")
