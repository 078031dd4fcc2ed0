"""The recipe decides the result, not the hardware: one run on one, two and three devices.

Batches of 128 over three devices are 42, 43 and 43 images: none of it needs equal shares.
"""

from pathlib import Path

import pytest
import torch
from commands import QUICK, checkpoint, finish, rows, start

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(400)]

RECIPE = (
    *QUICK,
    *("--trainer.limit_train_batches", "6", "--trainer.max_epochs", "3"),
)
DOUBLE = ("--trainer.precision", "64-true", "--model.learning_rate", "0.2")
"""Float64, and steps that are large enough to leave the start behind."""


def train(directory: Path, devices: int, *args: str) -> Path:
    """Trains on so many devices, without a word of warning."""
    process = start(
        "fit", *RECIPE, "--trainer.devices", devices, "--run_dir", directory, *args, bufsize=-1
    )
    outcome = finish(process, timeout=180)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return directory


def distance(a: Path, b: Path) -> float:
    """The largest relative difference of a weight or a running statistic."""
    one, other = checkpoint(a)["state_dict"], checkpoint(b)["state_dict"]
    assert one.keys() == other.keys()
    norms = [
        (one[k].double() - other[k].double()).norm() / one[k].double().norm().clamp(min=1e-12)
        for k in one
        if one[k].is_floating_point() and one[k].norm() > 0
    ]
    return float(torch.stack(norms).max())


def curve(directory: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(directory) if name in row]


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run in float64 on one, two and three devices."""
    folder = tmp_path_factory.mktemp("doubles")
    return {n: train(folder / str(n), n, *DOUBLE) for n in (1, 2, 3)}


@pytest.mark.parametrize("devices", [2, 3])
def test_weights_and_running_statistics_are_those_of_one_device(
    doubles: dict[int, Path], devices: int
) -> None:
    assert distance(doubles[1], doubles[devices]) < 1e-9


@pytest.mark.parametrize("devices", [2, 3])
def test_metrics_and_the_probe_are_those_of_one_device(
    doubles: dict[int, Path], devices: int
) -> None:
    one, other = rows(doubles[1]), rows(doubles[devices])
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for row, twin in zip(one, other, strict=True):
        for name in row:
            assert float(twin[name]) == pytest.approx(float(row[name]), rel=1e-6), name
    heads = [
        checkpoint(doubles[n])["callbacks"]["OnlineProbe"]["head"]["weight"] for n in (1, devices)
    ]
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-9, atol=1e-12)


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
    one, two = (curve(train(tmp_path / str(n), n), "train/loss") for n in (1, 2))
    assert two[:3] == pytest.approx(one[:3], rel=1e-5)
    assert two == pytest.approx(one, rel=0.02)
