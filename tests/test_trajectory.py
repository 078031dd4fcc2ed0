"""The recipe decides the result, not the hardware: devices, workers, interruptions, micro-batches.

Batches of 128 over three devices are 42, 43 and 43 images: none of it needs equal shares.
"""

import os
import shutil
import signal
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from commands import ENCODER_ARGS, QUICK, REPOSITORY, Outcome, environment, finish, run, start
from distances import far
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from photographs import write_digits
from ranks import ranks
from recording import InterruptionError, Pass, passes
from run_files import cells, checkpoint, rows, same_weights

from simclr_pl.commands.pack.pack import pack

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(400)]

RECIPE = (
    *QUICK,
    *("--trainer.limit_train_batches", "6", "--trainer.max_epochs", "3"),
    *("--trainer.callbacks+=recording.Recorder",),
)
STEPS = 18

DOUBLE = ("--trainer.precision", "64-true", "--model.learning_rate", "0.2")
"""Float64, and steps that are large enough to leave the start behind."""

BROKEN_OFF = ("--checkpoint.every_n_steps", "4", "--trainer.callbacks.step", "10")
"""Ends in the middle of the second epoch, two steps behind a checkpoint in the middle of it."""


def as_rank(*args: object) -> Outcome:
    """A command as one of several ranks."""
    # Lightning takes it from the environment when it is imported, which was before the fork.
    rank_zero_only.rank = dist.get_rank()
    return run(*args)


def train(directory: Path, devices: int, *args: object) -> Path:
    """Trains on so many devices, without a word of warning."""
    command = ("fit", *RECIPE, "--trainer.devices", devices, "--run_dir", directory, *args)
    outcomes = [run(*command)] if devices == 1 else ranks(devices, as_rank, *command, timeout=180)
    assert {(o.code, o.err) for o in outcomes} == {(0, "")}, outcomes
    return directory


def launch(directory: Path, devices: int, *args: object, **options: Any) -> Outcome:
    """Trains as a user does: one command, which starts the other ranks itself."""
    # The callbacks are found where the tests are.
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])
    command = ("fit", *RECIPE, "--trainer.devices", devices, "--run_dir", directory, *args)
    process = start(*command, bufsize=-1, env=environment(PYTHONPATH=path), **options)
    return finish(process, timeout=180)


def break_off(directory: Path, *args: object) -> None:
    """A run on one device that ends in mid-epoch."""
    callback = ("--trainer.callbacks+=recording.Interruption", *BROKEN_OFF)
    outcome = run("fit", *RECIPE, "--run_dir", directory, *args, *callback)
    assert InterruptionError.__name__ in outcome.sentence
    assert checkpoint(directory)["global_step"] == 8
    assert len(rows(directory)) == 10


# Distances ----------------------------------------------------------------------------------------


def distance(a: Path, b: Path) -> float:
    """The largest relative difference of a weight or a running statistic."""
    return far(checkpoint(a)["state_dict"], checkpoint(b)["state_dict"])


def assert_same_end(a: Path, b: Path, steps: int = STEPS) -> None:
    """The same state to float64's rounding: weights, optimiser, and the probe with its own."""
    one, other = checkpoint(a), checkpoint(b)
    assert one["global_step"] == other["global_step"] == steps
    assert far(one["state_dict"], other["state_dict"]) < 1e-9
    assert far(one["optimizer_states"], other["optimizer_states"]) < 1e-9
    assert far(one["callbacks"]["OnlineProbe"], other["callbacks"]["OnlineProbe"]) < 1e-9


def assert_same_metrics(a: Path, b: Path, steps: int = STEPS) -> None:
    """Each step once, each with the same names and nearly the same values."""
    one, other = rows(a), rows(b)
    assert [row["step"] for row in one] == [str(step) for step in range(steps)]
    assert sum("probe/train_top1" in row for row in one) == steps / 6
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for row, twin in zip(one, other, strict=True):
        for name in row:
            assert float(twin[name]) == pytest.approx(float(row[name]), rel=1e-6), name


def batches(record: list[Pass]) -> list[Pass]:
    """Passes of a step put together."""
    return [
        (step, tuple(image for _, images in one for image in images))
        for step, one in groupby(record, key=lambda one: one[0])
    ]


def curve(directory: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(directory) if name in row]


# Devices ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run in float64 on one, two and three devices."""
    folder = tmp_path_factory.mktemp("doubles")
    outcome = launch(folder / "2", 2, *DOUBLE)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return {1: train(folder / "1", 1, *DOUBLE), 2: folder / "2", 3: train(folder / "3", 3, *DOUBLE)}


@pytest.mark.parametrize("devices", [2, 3])
def test_order_and_views_are_those_of_one_device_to_the_bit(
    doubles: dict[int, Path], devices: int
) -> None:
    assert passes(doubles[devices]) == passes(doubles[1])


def test_the_record_is_of_all_steps_and_no_view_comes_twice(doubles: dict[int, Path]) -> None:
    record = passes(doubles[1])
    assert [(step, len(images)) for step, images in record] == [(s, 128) for s in range(STEPS)]
    images = [image.split(":") for _, batch in record for image in batch]
    assert len({digest for _, digest in images}) == STEPS * 128
    for epoch in range(3):  # each image once at most, in another order each time
        assert len({index for index, _ in images[epoch * 768 :][:768]}) == 768
    assert [i for i, _ in images[:768]] != [i for i, _ in images[768:][:768]]


@pytest.mark.parametrize("devices", [2, 3])
def test_weights_and_running_statistics_are_those_of_one_device(
    doubles: dict[int, Path], devices: int
) -> None:
    assert_same_end(doubles[1], doubles[devices])


@pytest.mark.parametrize("devices", [2, 3])
def test_metrics_are_those_of_one_device(doubles: dict[int, Path], devices: int) -> None:
    assert_same_metrics(doubles[1], doubles[devices])


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_runs_are_those_of_one_device_too(
    doubles: dict[int, Path], tmp_path: Path
) -> None:
    """Compiled views are made in float32, and so differ from others by its rounding."""
    compiled = ("--model.compiled=true", "--data.compiled=true", *DOUBLE)
    one = train(tmp_path / "one", 1, *compiled)
    two = train(tmp_path / "two", 2, *compiled)
    torch.compiler.reset()
    assert_same_end(one, two)
    assert_same_metrics(one, two)
    assert passes(one) == passes(two)  # the same pixels, to the bit
    assert distance(one, doubles[1]) < 2e-2


def test_the_run_says_something(doubles: dict[int, Path], tmp_path: Path) -> None:
    """Weights are more than 5 % away from where they began, and the loss has fallen."""
    still = train(tmp_path / "still", 1, *DOUBLE, "--model.learning_rate=1e-12")
    one, began = checkpoint(doubles[1])["state_dict"], checkpoint(still)["state_dict"]
    names = [name for name in one if name.endswith((".weight", ".bias"))]
    moved = torch.cat([(one[name] - began[name]).flatten() for name in names])
    assert float(moved.norm() / torch.cat([began[name].flatten() for name in names]).norm()) > 0.05
    losses = curve(doubles[1], "train/loss")
    assert losses[-1] < losses[0]


def test_without_global_batch_norm_devices_differ(doubles: dict[int, Path], tmp_path: Path) -> None:
    """What the flag turns off is what makes them equal: these tests would notice its loss."""
    own = train(tmp_path / "own", 2, *DOUBLE, "--model.global_batch_norm", "false")
    assert distance(doubles[1], own) > 1e-3


def test_in_float32_first_steps_agree_and_curves_stay_close(tmp_path: Path) -> None:
    # ReLU and batch norm let rounding grow, by more the larger the steps are.
    gentle = ("--model.learning_rate", "0.02")
    one, two = (curve(train(tmp_path / str(n), n, *gentle), "train/loss") for n in (1, 2))
    assert two[:3] == pytest.approx(one[:3], rel=1e-5)
    assert two == pytest.approx(one, rel=0.02)


# Interruptions ------------------------------------------------------------------------------------


def test_killed_on_two_devices_and_resumed_on_one(doubles: dict[int, Path], tmp_path: Path) -> None:
    blackout = ("--trainer.callbacks+=recording.Blackout", *BROKEN_OFF)
    # Its end is that of the last process that could still write: ranks share its pipes.
    outcome = launch(tmp_path, 2, *DOUBLE, *blackout, start_new_session=True)
    assert outcome.code == -signal.SIGKILL, outcome
    assert checkpoint(tmp_path)["global_step"] == 8
    assert len(rows(tmp_path)) == 10
    train(tmp_path, 1, *DOUBLE, "--resume")
    assert_same_end(doubles[1], tmp_path)
    assert_same_metrics(doubles[1], tmp_path)
    assert passes(tmp_path) == passes(doubles[1])


def test_broken_off_on_one_device_and_resumed_on_three(
    doubles: dict[int, Path], tmp_path: Path
) -> None:
    break_off(tmp_path, *DOUBLE)
    train(tmp_path, 3, *DOUBLE, "--resume")
    assert_same_end(doubles[1], tmp_path)
    assert_same_metrics(doubles[1], tmp_path)
    assert passes(tmp_path) == passes(doubles[1])


# Workers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Digits as image files of several sizes, a folder a class."""
    root = tmp_path_factory.mktemp("pictures")
    write_digits(root, 150)
    return ("--data.dataset", "folder", "--data.root", str(root), "--data.batch_size", "20")


@pytest.fixture(scope="module")
def workers(pictures: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run with no, one and two processes that decode."""
    folder = tmp_path_factory.mktemp("workers")
    return {n: train(folder / str(n), 1, *pictures, "--data.num_workers", n) for n in (0, 1, 2)}


def assert_same_bits(a: Path, b: Path) -> None:
    """The same run in all that is written about it."""
    assert passes(a) == passes(b)
    assert rows(a) == rows(b)
    one, other = checkpoint(a), checkpoint(b)
    assert same_weights(one, other)
    for name in ("optimizer_states", "lr_schedulers", "callbacks"):
        assert far(one[name], other[name]) == 0


@pytest.mark.parametrize("number", [1, 2])
def test_workers_change_not_a_bit(workers: dict[int, Path], number: int) -> None:
    assert len(passes(workers[0])) == len(rows(workers[0])) == STEPS
    assert_same_bits(workers[0], workers[number])
    assert cells(workers[0]) == cells(workers[number])


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 1)])
def test_a_resume_in_mid_epoch_with_other_workers_changes_not_a_bit(
    workers: dict[int, Path], pictures: tuple[str, ...], tmp_path: Path, before: int, after: int
) -> None:
    break_off(tmp_path, *pictures, "--data.num_workers", before)
    train(tmp_path, 1, *pictures, "--data.num_workers", after, "--resume")
    assert_same_bits(workers[0], tmp_path)


# Packed images ------------------------------------------------------------------------------------


def test_devices_see_the_same_views_of_packed_images(
    pictures: tuple[str, ...], tmp_path: Path
) -> None:
    root = pack(pictures[3], str(tmp_path / "set"), num_workers=0)
    data = ("--data.dataset", "packed", "--data.root", str(root), "--data.batch_size", "20")
    one, two = (train(tmp_path / str(n), n, *data, *DOUBLE) for n in (1, 2))
    assert passes(one) == passes(two)
    assert_same_end(one, two)
    assert_same_metrics(one, two)


# Micro-batches ------------------------------------------------------------------------------------

GROUPS = ENCODER_ARGS.replace("}", ', "norm_layer": "groupnorm1"}')
"""An encoder in which no image sees another."""


def parts(size: int) -> tuple[str, str]:
    return ("--model.micro_batch_size", str(size))


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run in micro-batches, with batch norm, on one, two and three devices."""
    folder = tmp_path_factory.mktemp("micro")
    return {n: train(folder / str(n), n, *DOUBLE, *parts(50)) for n in (1, 2, 3)}


@pytest.mark.parametrize("devices", [2, 3])
def test_micro_batches_are_those_of_one_device(micro: dict[int, Path], devices: int) -> None:
    assert passes(micro[devices]) == passes(micro[1])
    assert distance(micro[1], micro[devices]) < 1e-9
    assert_same_metrics(micro[1], micro[devices])


def test_micro_batches_are_runs_of_the_batchs_order(
    doubles: dict[int, Path], micro: dict[int, Path]
) -> None:
    record = passes(micro[1])
    assert [len(images) for _, images in record[:3]] == [43, 43, 42]
    assert len(record) == 3 * STEPS
    assert batches(record) == passes(doubles[1])


def test_batch_norm_sees_the_micro_batch(doubles: dict[int, Path], micro: dict[int, Path]) -> None:
    assert distance(doubles[1], micro[1]) > 1e-6


def test_running_statistics_move_once_a_step(tmp_path: Path) -> None:
    """The first layer's input is no matter of batch norm: its mean over equal parts is the same."""
    means = []
    for name, more in {"whole": (), "parts": parts(32)}.items():
        train(tmp_path / name, 1, *DOUBLE, "--trainer.max_steps", 1, *more)
        state = checkpoint(tmp_path / name)["state_dict"]
        assert int(state["encoder.bn1.num_batches_tracked"]) == 1
        means.append(state["encoder.bn1.running_mean"])
    torch.testing.assert_close(*means, rtol=1e-9, atol=1e-12)


def test_without_batch_norm_micro_batches_are_the_whole_batch(tmp_path: Path) -> None:
    recipe = (*DOUBLE, "--trainer.max_epochs", "1", "--model.encoder_args", GROUPS)
    whole = train(tmp_path / "whole", 1, *recipe)
    for size, devices in ((50, 1), (7, 1), (50, 2)):
        other = train(tmp_path / f"{size}-{devices}", devices, *recipe, *parts(size))
        assert_same_end(whole, other, steps=6)
        assert_same_metrics(whole, other, steps=6)
        assert batches(passes(other)) == passes(whole)
