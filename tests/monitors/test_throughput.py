"""Throughput: exact by a clock that the tests move, honest by the real one, nobody's trajectory."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from commands import fit
from monitored import Other, digits, trainer
from ranks import ranks
from run_files import checkpoint, rows
from torch import Tensor
from torch.utils.data import DataLoader

from simclr_pl import ContrastiveDataModule
from simclr_pl.core.batch import Batch, Cut
from simclr_pl.core.data import loaders
from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.monitors import throughput as speed
from simclr_pl.monitors.throughput import Throughput
from simclr_pl.run.metrics import MetricsFile, read_metrics

RATE, WAIT = "speed/images_per_s", "speed/data_wait"


class Clock:
    """Stands still unless it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


class Slow(ArrayImages):
    """A source that takes its time for a batch."""

    take: Callable[[], None]

    def batches(
        self, plan: Sequence[Tensor], epoch: int, cut: Cut, *, training: bool = False
    ) -> Iterator[Batch]:
        for batch in super().batches(plan, epoch, cut, training=training):
            if cut == "views":
                self.take()
            yield batch


def slow_digits(take: Callable[[], None]) -> ContrastiveDataModule:
    data = digits()
    data.setup()
    train: Any = data.splits.train
    slow = Slow(train.images, train.labels)
    slow.take = take
    data.splits = data.splits._replace(train=slow)
    return data


class Work(L.Callback):
    """Moves a clock: 1 s a step (60 s the first), and much more in whatever isn't a step."""

    def __init__(self, clock: Clock, save_after: int = 0) -> None:
        self.clock, self.save_after = clock, save_after

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.clock.move(60 if trainer.global_step == 0 else 1)

    def on_validation_epoch_end(self, *args: Any) -> None:
        self.clock.move(500)

    def on_validation_end(self, *args: Any) -> None:
        self.clock.move(500)

    def on_train_epoch_end(self, *args: Any) -> None:
        self.clock.move(500)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.save_after:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "mid.ckpt")
            self.clock.move(500)


def timed(folder: Path, *, every: int = 1, save_after: int = 0, **options: Any) -> dict[int, Any]:
    """Two epochs of five steps by a clock on which a batch takes 3 s; what each step has logged."""
    clock = Clock()
    speed.perf_counter = loaders.perf_counter = clock  # type: ignore[attr-defined]
    log = MetricsFile(folder / "metrics.csv")
    run = trainer(
        *(Throughput(), Work(clock, save_after)),
        **{"max_epochs": 2, "limit_train_batches": 5, "log_every_n_steps": every, **options},
        logger=log,
        default_root_dir=folder,
    )
    run.fit(Other(), slow_digits(lambda: clock.move(3)))
    return {int(r["step"]): (float(r[RATE]), float(r[WAIT])) for r in table(log) if RATE in r}


def table(log: MetricsFile) -> list[dict[str, str]]:
    return read_metrics(log.path) if log.path.exists() else []


@pytest.fixture
def _real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back after the test."""
    for module in (speed, loaders):
        monkeypatch.setattr(module, "perf_counter", time.perf_counter)


FOUR_SECONDS = (pytest.approx(128 / 4), pytest.approx(3 / 4))


@pytest.mark.usefixtures("_real_clock")
def test_every_step_counts_but_the_first_and_nothing_counts_but_steps(tmp_path: Path) -> None:
    logged = timed(tmp_path)
    assert logged == dict.fromkeys(range(1, 10), FOUR_SECONDS)


@pytest.mark.usefixtures("_real_clock")
def test_windows_reach_from_one_logged_step_to_the_next_over_epochs(tmp_path: Path) -> None:
    assert timed(tmp_path, every=4) == dict.fromkeys([3, 7], FOUR_SECONDS)
    assert timed(tmp_path / "off", every=0) == {}


@pytest.mark.usefixtures("_real_clock")
def test_steps_with_a_validation_or_a_checkpoint_are_left_out(tmp_path: Path) -> None:
    logged = timed(tmp_path, save_after=7, val_check_interval=2)
    # Behind the validations of steps 1, 3, 6 and 8 (the last one's is there), and the save of 6.
    assert logged == dict.fromkeys([1, 3, 5, 6, 8], FOUR_SECONDS)


def timed_on_a_rank(folder: Path, world: int) -> dict[int, Any]:
    return timed(folder, devices=world, strategy="ddp", max_epochs=1)


@pytest.mark.ddp
def test_images_of_all_devices_count_once(tmp_path: Path) -> None:
    """A batch of 128 over three devices is 42, 43 and 43 images."""
    first, *_ = ranks(3, timed_on_a_rank, tmp_path, 3)
    assert first == dict.fromkeys(range(1, 5), FOUR_SECONDS)


def measured(folder: Path, data: ContrastiveDataModule) -> dict[str, str]:
    """By the real clock: the last step's numbers."""
    log = MetricsFile(folder / "metrics.csv")
    run = trainer(Throughput(), max_epochs=1, log_every_n_steps=5, logger=log)
    run.fit(Other(), data)
    return table(log)[-1]


def test_a_slow_source_makes_data_wait_rise(tmp_path: Path) -> None:
    fast = measured(tmp_path / "fast", slow_digits(lambda: None))
    slow = measured(tmp_path / "slow", slow_digits(lambda: time.sleep(0.2)))
    assert 0 <= float(fast[WAIT]) < float(slow[WAIT]) < 1
    seconds_a_step = 128 / float(slow[RATE])
    assert seconds_a_step * float(slow[WAIT]) >= 0.2
    assert float(slow[RATE]) < float(fast[RATE])


class Uncounted(ContrastiveDataModule):
    """With a loader of torch's."""

    def train_dataloader(self) -> Any:
        return DataLoader(list(super().train_dataloader()), batch_size=None)  # type: ignore[arg-type]


def test_a_loader_that_does_not_count_gives_no_data_wait(tmp_path: Path) -> None:
    numbers = measured(tmp_path, Uncounted(batch_size=128, seed=0))
    assert float(numbers[RATE]) > 0
    assert WAIT not in numbers


def test_fit_logs_both_and_keeps_them_out_of_checkpoints_and_comparisons(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    numbers = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [{RATE, WAIT} <= row.keys() for row in numbers] == [False, True, True, True]
    assert all(float(row[RATE]) > 0 and 0 <= float(row[WAIT]) <= 1 for row in numbers[1:])
    assert Throughput.__name__ not in checkpoint(tmp_path / "run")["callbacks"]
    assert not any(name.startswith("speed/") for row in rows(tmp_path / "run") for name in row)
