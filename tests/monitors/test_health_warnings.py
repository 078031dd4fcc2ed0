"""What counts as trouble, a window at a time; real runs earn a warning, or are left in peace."""

import contextlib
import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from commands import REPOSITORY, run
from health import NAMES
from monitored import Attraction, Other, digits, trainer
from run_files import rows
from torch import nn

from simclr_pl import HealthMonitor
from simclr_pl.monitors.health_metrics import StepHealth
from simclr_pl.monitors.health_warnings import STUCK_AFTER, WARN_AFTER_WINDOWS, Trouble, Window


def windows(losses: list[float], chance: float = math.log(1023), **known: float) -> list[Window]:
    """Windows of a batch of 512 images."""
    usual = {"feature_std": 0.5, "projection_std": 0.95, "dimension": 20.0, "images": 512}
    last = StepHealth(0.0, 0.0, 0.0, 0.0, **(usual | known))  # type: ignore[arg-type]
    return [Window(loss, chance, last, 50 * n) for n, loss in enumerate(losses, 1)]


def said(trouble: list[Window], judge: Trouble | None = None) -> list[str]:
    """Which kinds, in the order in which they were said."""
    judge = judge or Trouble()
    for window in trouble:
        for sentence in judge.look(window):
            assert sentence.startswith("warning: ")
            assert "nan" not in sentence
    kinds: list[str] = judge.state["said"]
    return kinds


CHANCE = math.log(1023)  # 6.93


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([6.9] * 20, ["stuck"]),
        ([6.9] * (STUCK_AFTER - 1), []),
        ([7.5] * 20, ["stuck"]),  # above chance, where a wild learning rate may keep it
        ([6.9] * 5 + [6.5] * 15, []),  # a long warm-up
        ([6.5, 5.5, 5.1] + [5.0] * 20, []),
        ([5.0] * 20, []),  # trained before, at temperature 0.5
        ([5.95] * 20, []),  # likewise, at temperature 1
        ([5.0, 5.3, 5.4, 5.3, 5.2, 5.1, 5.0, 4.9], []),  # likewise, with a new warm-up
        ([13.0, 9.0, 7.5, 6.5, 5.0, 4.0], []),  # a small temperature, from an untrained start
        ([6.8, 5.5, 5.2, 5.5, 5.6, 5.5, 5.3], []),  # a rise at the peak of the learning rate
        ([6.8, 5.5, 5.0, 6.5, 6.5, 5.5, 5.0], []),  # a spike that goes away
        ([6.8, 5.5, 5.0] + [6.93] * WARN_AFTER_WINDOWS, ["divergence"]),
        ([6.8, 5.5, 5.0] + [6.93] * 20, ["divergence"]),
        ([6.8, 6.5, 8.0, 9.0, 20.0, 50.0], ["divergence"]),
        ([6.8, 6.0, 5.5, math.nan, math.inf, math.nan, math.nan], []),  # StopOnNaN says it
        ([math.nan] * 20, []),
    ],
)
def test_of_losses(losses: list[float], expected: list[str]) -> None:
    assert said(windows(losses)) == expected


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"feature_std": 0.01}, ["collapse"]),
        ({"projection_std": 0.01}, ["collapse"]),
        ({"dimension": 1.001}, ["collapse"]),  # two opposite points, behind a batch norm
        ({"dimension": 1.001, "images": 2, "chance": math.log(3)}, []),
        ({"projection_std": 0.2, "dimension": 1.05}, []),
    ],
)
def test_of_representations(known: dict[str, float], expected: list[str]) -> None:
    falling = [1 + 1 / n for n in range(1, 10)]
    assert said(windows(falling, **known)) == expected
    assert said(windows(falling[: WARN_AFTER_WINDOWS - 1], **known)) == []


def test_a_collapse_that_passes_is_none() -> None:
    bad, good = windows([5.0, 4.9], feature_std=0.01), windows([4.8])
    assert said([*bad, *good, *bad, *good]) == []


def test_what_was_said_is_in_the_state() -> None:
    judge, again = Trouble(), Trouble()
    assert said(windows([6.8, 5.0] + [6.93] * 5), judge) == ["divergence"]
    again.state = dict(judge.state)
    assert again.look(windows([6.93])[0]) == []


# Warnings, earned ---------------------------------------------------------------------------------


class Jump(L.Callback):
    """Another learning rate from some step on, as at the end of a warm-up gone wrong."""

    def __init__(self, step: int, learning_rate: float) -> None:
        self.step, self.learning_rate = step, learning_rate

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.optimizers[0].param_groups[0]["lr"] = self.learning_rate


def plain_network(model: Other) -> Other:
    """Without batch norm, which forgives any learning rate, and without dropout."""
    model.encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
    )
    model.projector = nn.Linear(32, 16)
    return model


def collapsing() -> Other:
    model = plain_network(Other())
    model.loss = Attraction()
    return model


CASES: dict[str, tuple[Callable[[], Other], int, list[L.Callback], str]] = {
    "collapse": (collapsing, 25, [], "has collapsed by step"),
    "stuck": (lambda: plain_network(Other(1e-12)), 40, [], "the loss is stuck at"),
    "divergence": (lambda: plain_network(Other()), 27, [Jump(100, 100.0)], "the loss diverges"),
}


def printed(model: Other, epochs: int, *callbacks: L.Callback, path: Path | None = None) -> str:
    """What a run says, from where a checkpoint left off if there is one."""
    out = io.StringIO()
    lightning = trainer(*callbacks, max_epochs=epochs, limit_val_batches=0)
    there = str(path) if path and path.exists() else None
    with contextlib.redirect_stdout(out):
        lightning.fit(model, digits(), ckpt_path=there, weights_only=True)
    if path:
        lightning.save_checkpoint(path)
    return out.getvalue()


@functools.cache
def through(kind: str) -> str:
    """What a run says that nobody has broken off."""
    build, epochs, callbacks, _ = CASES[kind]
    return printed(build(), epochs, HealthMonitor(10), *callbacks)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.long
def test_trouble_is_said_once_with_a_remedy(kind: str) -> None:
    sentence, out = CASES[kind][-1], through(kind)
    assert out.count(sentence) == out.count("warning: ") == 1, out
    assert "--model.learning_rate" in out
    assert len(out.strip().splitlines()) == 1


@pytest.mark.parametrize("broken_off", ["before", "behind"])
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.long
def test_trouble_is_said_once_over_a_resume(kind: str, broken_off: str, tmp_path: Path) -> None:
    """Counting goes on in the middle of a window; what was said is not said again."""
    build, epochs, callbacks, _ = CASES[kind]
    path = tmp_path / "broken-off.ckpt"
    first = 13 if broken_off == "before" else epochs
    parts = [
        printed(build(), end, HealthMonitor(10), *callbacks, path=path)
        for end in (first, epochs + (0 if broken_off == "before" else 15))
    ]
    whole = through(kind)
    assert parts == (["", whole] if broken_off == "before" else [whole, ""])


@pytest.mark.long
def test_many_looks_or_few_make_no_difference() -> None:
    outs = [printed(collapsing(), 25, HealthMonitor(every)) for every in (1, 5, 50)]
    assert outs[0]
    assert outs[0] == outs[1] == outs[2]


HEALTHY: dict[str, tuple[Callable[[], Other], int, int]] = {
    "plain": (Other, 128, 40),
    "small temperature": (lambda: Other(temperature=0.05), 128, 40),
    "large temperature": (lambda: Other(temperature=1.0), 128, 40),
    "high learning rate": (lambda: Other(1.0), 128, 40),
    "tiny batch": (lambda: Other(0.01), 8, 3),
    "a batch of two": (lambda: Other(0.003), 2, 1),
    "no batch norm": (lambda: plain_network(Other()), 128, 40),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.long
def test_a_healthy_run_is_left_in_peace(name: str) -> None:
    build, batch, epochs = HEALTHY[name]
    out = io.StringIO()
    lightning = trainer(HealthMonitor(5), max_epochs=epochs, limit_val_batches=0)
    with contextlib.redirect_stdout(out):
        lightning.fit(build(), digits(batch))
    assert lightning.global_step > 400
    assert out.getvalue() == ""


@pytest.mark.long
def test_the_digits_recipe_is_left_in_peace(tmp_path: Path) -> None:
    config = REPOSITORY / "configs" / "digits.yaml"
    more = (
        "--trainer.max_epochs=20",
        "--health.every_n_steps=5",
        "--wandb=off",
        "--linear.every_n_epochs=0",
    )
    outcome = run("fit", "--config", config, *more, "--run_dir", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert "warning" not in outcome.out + outcome.err
    last = next(row for row in reversed(rows(tmp_path / "run")) if row.keys() >= NAMES)
    assert float(last["health/loss_over_chance"]) < -1
    assert float(rows(tmp_path / "run")[-1]["knn/val_top1"]) > 0.85


# Errors -------------------------------------------------------------------------------------------


class Closed(io.StringIO):
    """A standard output whose reader has gone, but for what is no warning of trouble."""

    def write(self, text: str) -> int:
        if "collapsed" in text:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.long
def test_a_warning_that_cannot_be_printed_ends_no_training() -> None:
    build, epochs, callbacks, _ = CASES["collapse"]
    out, lightning = Closed(), trainer(HealthMonitor(10), *callbacks, max_epochs=epochs)
    with contextlib.redirect_stdout(out):
        lightning.fit(build(), digits())
    assert lightning.current_epoch == epochs
    sentence = "warning: health is not watched (BrokenPipeError: [Errno 32] Broken pipe)"
    assert out.getvalue().count(sentence) == 1
