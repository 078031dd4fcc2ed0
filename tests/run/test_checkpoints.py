"""Checkpoints: whole or not at all, when asked for, and what a run resumed from one becomes.

Kills are in test_kills.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import DRAWING, ENCODER_ARGS, QUICK, fit, run
from run_files import cells, checkpoint, files, rows, same_weights

from simclr_pl.core.errors import UserError
from simclr_pl.run.checkpoints import AtomicCheckpointIO, SaveCheckpoint


def names(directory: Path) -> list[str]:
    """Files in a run's folder of checkpoints, beside the one that says what data it saw."""
    found = {path.name for path in (directory / "checkpoints").iterdir()}
    return sorted(found - {"data.npz"})


# Writing ------------------------------------------------------------------------------------------


class Unwilling:
    """Something that fails when half of a checkpoint has been written."""

    def __reduce__(self) -> Any:
        raise OSError("no space left on device")


def test_a_failure_in_the_middle_of_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "below" / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"weights": torch.arange(1000)}, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        io.save_checkpoint({"weights": torch.zeros(1000), "more": Unwilling()}, path)
    assert path.read_bytes() == before
    io.save_checkpoint({"weights": torch.ones(1000)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(1000))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"number": 1}, path)
    with path.open("rb") as reader:  # who reads the old one goes on reading the old one
        io.save_checkpoint({"number": 2}, path)
        assert torch.load(reader, weights_only=True) == {"number": 1}
    assert torch.load(path, weights_only=True) == {"number": 2}


@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_steps", "keep_every_n_epochs"])
def test_intervals_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"checkpoint\.{name} is 0, but must be at least 1"):
        SaveCheckpoint(**{name: 0})


# When ---------------------------------------------------------------------------------------------


def test_kept_epochs_are_checkpoints_of_their_own(tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_epochs", "5", "--checkpoint.keep_every_n_epochs", "2")
    assert names(tmp_path) == ["epoch=0002.ckpt", "epoch=0004.ckpt", "last.ckpt"]
    steps = [checkpoint(tmp_path, name)["global_step"] for name in names(tmp_path)]
    assert steps == [4, 8, 10]
    assert not same_weights(checkpoint(tmp_path, "epoch=0004.ckpt"), checkpoint(tmp_path))


def test_the_last_epoch_is_saved_whatever_the_interval(tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_epochs", "3", "--checkpoint.every_n_epochs", "2")
    assert checkpoint(tmp_path)["global_step"] == 6


def test_a_run_that_ends_by_its_steps_is_saved_at_its_last_one(tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", "3", "--checkpoint.every_n_epochs", "100")
    assert checkpoint(tmp_path)["global_step"] == 3


EXPLODE = ("--model.learning_rate", "1e30", "--trainer.limit_train_batches", "5")
"""The first step's update is still finite, the second step's loss is not."""


def test_steps_in_mid_epoch_are_saved_when_asked_for(tmp_path: Path) -> None:
    every_step = ("--checkpoint.every_n_steps", "1")
    outcome = run("fit", *QUICK, *EXPLODE, *every_step, "--run_dir", tmp_path / "asked")
    assert "at step 2" in outcome.sentence
    assert checkpoint(tmp_path / "asked")["global_step"] == 1
    assert run("fit", *QUICK, *EXPLODE, "--run_dir", tmp_path / "not").code != 0
    assert not (tmp_path / "not" / "checkpoints").exists()


# Resuming -----------------------------------------------------------------------------------------


def go_back(directory: Path, name: str) -> None:
    """Makes a run look as if it had been killed behind the checkpoint `name`."""
    (directory / "checkpoints" / name).replace(directory / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("encoder_args", [ENCODER_ARGS, DRAWING], ids=["plain", "dropout"])
def test_a_resume_at_an_epochs_end_is_the_uninterrupted_run_to_the_bit(
    tmp_path: Path, encoder_args: str
) -> None:
    recipe = ("--checkpoint.keep_every_n_epochs", "1", "--model.encoder_args", encoder_args)
    fit(tmp_path, *recipe)
    whole, metrics = checkpoint(tmp_path), cells(tmp_path)
    go_back(tmp_path, "epoch=0001.ckpt")
    torch.manual_seed(7)  # the generator of another process is in another state
    fit(tmp_path, *recipe, "--resume")
    again = checkpoint(tmp_path)
    assert same_weights(again, whole)
    assert again["global_step"] == whole["global_step"] == 4
    assert cells(tmp_path) == metrics
    for state, other in zip(again["optimizer_states"], whole["optimizer_states"], strict=True):
        for index, moments in state["state"].items():
            assert torch.equal(moments["momentum_buffer"], other["state"][index]["momentum_buffer"])


def test_workers_and_devices_of_a_resume_are_free_and_change_nothing(tmp_path: Path) -> None:
    fit(tmp_path, "--checkpoint.keep_every_n_epochs", "1")
    whole = checkpoint(tmp_path)
    go_back(tmp_path, "epoch=0001.ckpt")
    fit(tmp_path, "--data.num_workers", "0", "--trainer.devices", "1", "--resume")
    assert same_weights(checkpoint(tmp_path), whole)


# From another run's weights -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, read only."""
    directory = tmp_path_factory.mktemp("source") / "run"
    fit(directory)
    return directory


def learned(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights, without batch norm's running statistics."""
    return {k: v for k, v in state["state_dict"].items() if "running" not in k and "num_b" not in k}


def test_init_from_starts_a_new_run_from_weights(source: Path, tmp_path: Path) -> None:
    still = ("--model.learning_rate", "1e-30", "--model.weight_decay", "0")  # weights stay
    init = ("--init_from", source / "checkpoints" / "last.ckpt")
    before = files(source)
    fit(tmp_path / "new", *init, *still)
    new, old = checkpoint(tmp_path / "new"), checkpoint(source)
    assert learned(new).keys() == learned(old).keys()
    assert all(torch.equal(learned(new)[name], w) for name, w in learned(old).items())
    assert new["global_step"] == 4  # its own steps, its own schedule
    assert [row["step"] for row in rows(tmp_path / "new")] == ["0", "1", "2", "3"]
    assert files(source) == before
    fit(tmp_path / "scratch", *still)
    first = [float(rows(tmp_path / name)[0]["train/loss"]) for name in ("new", "scratch")]
    assert first[0] != pytest.approx(first[1], rel=1e-3)


def test_init_from_is_not_applied_again_by_a_resume(source: Path, tmp_path: Path) -> None:
    init = ("--init_from", source / "checkpoints" / "last.ckpt")
    fit(tmp_path, *init, "--resume")
    fit(tmp_path, *init, "--resume", "--trainer.max_epochs", "3")
    state = checkpoint(tmp_path)
    assert state["global_step"] == 6
    # The source's four batches, and this run's six.
    assert int(state["state_dict"]["encoder.bn1.num_batches_tracked"]) == 10


def test_an_encoder_comes_back_out_of_a_runs_checkpoint(source: Path) -> None:
    from simclr_pl import load_encoder

    encoder = load_encoder(source / "checkpoints" / "last.ckpt")
    assert not encoder.training
    weights = checkpoint(source)["state_dict"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, weights[f"encoder.{name}"])
