"""The same callbacks and data fitted twice: the second fit is as the first would have been."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from monitored import Attraction, Other, digits, trainer

from simclr_pl import HealthMonitor, KNNMonitor, OnlineProbe, UserError
from simclr_pl.commandline.progress import Progress
from simclr_pl.monitors.linear import LinearEvaluation
from simclr_pl.pictures import gallery
from simclr_pl.run.checkpoints import SaveCheckpoint, StopOnNaN


class Wide(Other):
    """Features of another width than a probe before has seen."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).repeat(1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.projector = torch.nn.Linear(144, 16)


def numbers(*callbacks: L.Callback, module: L.LightningModule | None = None) -> dict[str, float]:
    lightning = trainer(*callbacks, max_epochs=1, limit_train_batches=3, limit_val_batches=2)
    lightning.fit(Other() if module is None else module, digits())
    return {name: float(value) for name, value in lightning.callback_metrics.items()}


@pytest.mark.parametrize(
    "build",
    [OnlineProbe, lambda: KNNMonitor(1), lambda: HealthMonitor(1), lambda: LinearEvaluation(1, 2)],
    ids=["probe", "knn", "health", "linear"],
)
@pytest.mark.long
def test_a_monitor_logs_the_same_of_a_second_fit(build: Any) -> None:
    callback = build()
    numbers(callback, module=Wide())
    assert numbers(callback) == numbers(build()) != {}


class Breaks(L.Callback):
    """Breaks a validation off behind its first batch."""

    def on_validation_batch_end(self, *args: Any) -> None:
        raise RuntimeError("broken off")


@pytest.mark.parametrize("build", [OnlineProbe, lambda: KNNMonitor(1), lambda: HealthMonitor(1)])
def test_a_fit_that_was_broken_off_leaves_nothing_to_the_next(build: Any) -> None:
    callback = build()
    with pytest.raises(RuntimeError, match="broken off"):
        numbers(callback, Breaks(), module=Wide())
    assert numbers(callback) == numbers(build())


@pytest.mark.long
def test_trouble_is_said_in_each_fit(capsys: pytest.CaptureFixture[str]) -> None:
    health = HealthMonitor(10)
    for _ in range(2):
        module = Other(0.3)
        module.loss = Attraction()
        trainer(health, max_epochs=20, limit_val_batches=0).fit(module, digits())
        assert capsys.readouterr().out.count("has collapsed") == 1


class Falls(Other):
    """A loss that is no number."""

    def training_step(self, *args: Any) -> Any:
        output = super().training_step(*args)
        return output | {"loss": output["loss"] * torch.nan}


def test_a_fit_behind_one_that_had_no_finite_loss_goes_on() -> None:
    stop = StopOnNaN()
    with pytest.raises(UserError, match="the loss is no longer a number"):
        numbers(stop, module=Falls())
    numbers(stop)


def test_an_error_in_a_picture_is_said_in_each_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    class Album(L.pytorch.loggers.CSVLogger):
        def log_image(self, *args: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(gallery, "snap", broken)
    monkeypatch.setattr(gallery, "_that_take_images", lambda trainer: [Album(".")])
    pictures = gallery.Gallery(1)
    for _ in range(2):
        numbers(pictures)
        assert capsys.readouterr().out.count("warning: no pictures") == 1


def test_progress_of_a_second_fit_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for _ in range(2):
        lightning = trainer(progress, max_steps=2, limit_val_batches=0, enable_progress_bar=True)
        lightning.fit(Other(), digits())
        assert "step 2/2" in capsys.readouterr().out


def test_checkpoints_of_another_trainer_lie_in_its_own_directory(tmp_path: Path) -> None:
    save = SaveCheckpoint()
    for name in ("a", "b"):
        options: Any = {"default_root_dir": tmp_path / name, "enable_checkpointing": True}
        trainer(save, max_steps=1, limit_val_batches=0, **options).fit(Other(), digits())
        assert (tmp_path / name / "checkpoints" / "last.ckpt").is_file()
