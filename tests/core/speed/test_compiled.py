"""`model.compiled`: the same training, to rounding, on any number of devices and after a stop."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import QUICK, run
from distances import far
from recording import InterruptionError
from run_files import checkpoint, rows

from simclr_pl import load_encoder
from simclr_pl.core.speed.compiler import compiled

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(600),
    # The compiler's own look at what comes between encoder and projector; it is not shown.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)

RECIPE = (
    *QUICK,
    *("--trainer.limit_train_batches", "4", "--trainer.precision", "64-true"),
    *("--model.learning_rate", "0.2"),
)
COMPILED = ("--model.compiled", "true")


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """What was compiled is of no use to other tests."""
    yield
    compiled.cache_clear()
    torch.compiler.reset()


def train(directory: Path, *args: object) -> Path:
    outcome = run("fit", *RECIPE, "--run_dir", directory, *args)
    assert (outcome.code, outcome.err) == (0, "")
    assert ("compiled" in outcome.out) == (COMPILED[0] in args)
    return directory


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("eager") / "run")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("fast") / "run", *COMPILED)


def assert_same_training(one: Path, other: Path, atol: float = 1e-9) -> None:
    for state in ("state_dict", "optimizer_states"):
        assert far(checkpoint(one)[state], checkpoint(other)[state]) < atol
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5, abs=1e-7), name


@needs_compiler
def test_a_compiled_run_is_the_same_run(eager: Path, fast: Path) -> None:
    assert_same_training(eager, fast)


@needs_compiler
def test_its_checkpoint_is_like_any_other(eager: Path, fast: Path) -> None:
    assert checkpoint(fast)["state_dict"].keys() == checkpoint(eager)["state_dict"].keys()
    images = torch.rand(3, 1, 8, 8)
    encoders = [load_encoder(path / "checkpoints" / "last.ckpt") for path in (fast, eager)]
    one, other = (encoder(images.to(next(encoder.parameters()).dtype)) for encoder in encoders)
    torch.testing.assert_close(one, other)
    assert run("validate", "--run_dir", fast).code == 0


@needs_compiler
@pytest.mark.parametrize("then", [COMPILED, ()])
def test_it_goes_on_behind_an_interruption(fast: Path, tmp_path: Path, then: tuple[str]) -> None:
    stop = ("--trainer.callbacks+=recording.Interruption", "--trainer.callbacks.step", "6")
    outcome = run(
        "fit", *RECIPE, "--run_dir", tmp_path, *COMPILED, *stop, "--checkpoint.every_n_steps", "5"
    )
    assert InterruptionError.__name__ in outcome.sentence
    assert checkpoint(tmp_path)["global_step"] == 5
    train(tmp_path, "--resume", *then)
    assert_same_training(tmp_path, fast)


@needs_compiler
def test_micro_batches_are_compiled_too(tmp_path: Path) -> None:
    micro = ("--model.micro_batch_size", "50")
    train(tmp_path / "eager", *micro)
    train(tmp_path / "fast", *micro, *COMPILED)
    assert_same_training(tmp_path / "eager", tmp_path / "fast")
