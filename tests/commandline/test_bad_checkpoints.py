"""Checkpoints that cannot be used, or are not to be, end in one sentence and lose nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK, refused, run
from noise import write_npz
from run_files import checkpoint, files, rows


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_programs(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def newer(path: Path) -> None:
    loaded = torch.load(path, weights_only=True)
    loaded["simclr_pl"]["format"] = 99
    torch.save(loaded, path)


def code(path: Path) -> None:
    torch.save({"surprise": missing}, path)  # a function: loading it would import and run things


SPOILT = [
    (truncated, ("cannot be read", "truncated", "another checkpoint")),
    (empty, ("cannot be read",)),
    (another_programs, ("not a checkpoint of simclr_pl", ".ckpt")),
    (newer, ("format 99", "install the version")),
    (code, ("cannot be read",)),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT)
@pytest.mark.parametrize("option", ["--resume", "--init_from", "--ckpt_path"])
def test_a_spoilt_checkpoint_is_refused_and_nothing_of_its_run_is_lost(
    finished: Path,
    tmp_path: Path,
    option: str,
    spoil: Callable[[Path], None],
    words: tuple[str, ...],
) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    spoil(last)
    before = files(finished)
    commands = {
        "--resume": ("fit", *QUICK, "--resume", "--run_dir", finished),
        "--init_from": ("fit", *QUICK, "--init_from", last, "--run_dir", tmp_path / "new"),
        "--ckpt_path": ("validate", *QUICK, "--ckpt_path", last),
    }
    sentence = run(*commands[option]).sentence
    for word in (str(last), *words):
        assert word in sentence, sentence
    assert files(finished) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--init_from", "--ckpt_path"])
def test_a_missing_checkpoint_is_named(finished: Path, tmp_path: Path, option: str) -> None:
    wanted = finished / "checkpoints" / "lst.ckpt"
    commands = {
        "--init_from": ("fit", *QUICK, "--init_from", wanted, "--run_dir", tmp_path / "new"),
        "--ckpt_path": ("validate", *QUICK, "--ckpt_path", wanted),
    }
    assert f"there is no checkpoint at {wanted}" in run(*commands[option]).sentence
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluating_without_a_model_asks_for_one(command: str) -> None:
    sentence = run(command, *QUICK).sentence
    assert sentence.startswith(f"error: {command} needs a trained model")
    assert "--run_dir" in sentence
    assert "--ckpt_path" in sentence


def test_evaluating_a_directory_without_a_run_says_so(tmp_path: Path) -> None:
    sentence = run("validate", "--run_dir", tmp_path / "nothing").sentence
    assert f"{tmp_path / 'nothing'} holds no run" in sentence
    assert not (tmp_path / "nothing").exists()


def test_weights_of_another_architecture_are_refused_by_parameter(
    source: Path, tmp_path: Path
) -> None:
    last = source / "checkpoints" / "last.ckpt"
    sentence = refused(tmp_path, "--init_from", last, "--model.projection_dim", "64")
    assert "another architecture" in sentence
    assert "'projector.1.0.weight'" in sentence
    assert "Use the configuration that wrote it" in sentence


def test_evaluating_data_that_the_checkpoint_does_not_fit_is_refused(
    source: Path, tmp_path: Path
) -> None:
    in_colour = write_npz(tmp_path / "data.npz", 8, 8, 3)
    last = source / "checkpoints" / "last.ckpt"
    data = ("--data.dataset", "npz", "--data.root", in_colour)
    sentence = run("validate", *QUICK, *data, "--ckpt_path", last).sentence
    assert "encoder.conv1.weight" in sentence


# A loss that is no longer a number ----------------------------------------------------------------


def test_a_loss_that_is_not_a_number_ends_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    # One step an epoch: the first is sound, and saved; its weights blow up the second.
    explode = ("--model.learning_rate", "1e30", "--trainer.limit_train_batches", "1")
    sentence = run("fit", *QUICK, *explode, "--run_dir", directory).sentence
    assert "the loss is no longer a number" in sentence
    assert "--model.learning_rate" in sentence
    saved = checkpoint(directory)
    assert saved["global_step"] == 1
    assert all(torch.isfinite(w).all() for w in saved["state_dict"].values())
    assert rows(directory)[0]["step"] == "0"


def test_weights_that_are_not_numbers_never_replace_a_checkpoint(
    finished: Path, tmp_path: Path
) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    loaded = torch.load(last, weights_only=True)
    loaded["state_dict"]["encoder.conv1.weight"].fill_(1e38)  # finite, but the next step is not
    torch.save(loaded, last)
    before = last.read_bytes()
    more = ("--trainer.max_epochs", "3")
    sentence = run("fit", *QUICK, *more, "--resume", "--run_dir", finished).sentence
    assert "no longer a number" in sentence
    assert "Checkpoints saved before are untouched" in sentence
    assert last.read_bytes() == before


# A checkpoint that lacks a key --------------------------------------------------------------------


def without(*keys: str) -> Callable[[dict[str, object]], None]:
    """What takes a key out of a checkpoint."""

    def take(content: dict[str, object]) -> None:
        *above, last = keys
        place: Any = content
        for key in above:
            place = place[key]
        del place[last]

    return take


@pytest.mark.parametrize(
    "keys",
    [
        *(("simclr_pl", name) for name in ("encoder", "mean", "std", "image_size")),
        ("simclr_pl", "encoder", "name"),
        ("state_dict",),
    ],
    ids=".".join,
)
def test_a_checkpoint_without_a_key_is_refused_by_its_name(
    finished: Path, keys: tuple[str, ...], tmp_path: Path
) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    without(*keys)(content)
    torch.save(content, last)
    for args in (
        ("validate", "--run_dir", finished),
        ("knn", "--run_dir", finished),
        ("fit", *QUICK, "--resume", "--run_dir", finished),
        ("fit", *QUICK, "--init_from", last, "--run_dir", tmp_path / "new"),
    ):
        assert f"{last} lacks {'.'.join(keys)}" in run(*args).sentence


@pytest.mark.parametrize(
    "key", ["loops", "optimizer_states", "lr_schedulers", "epoch", "global_step", "callbacks"]
)
def test_a_resume_from_a_checkpoint_without_a_key_is_refused_by_its_name(
    finished: Path, key: str
) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    without(key)(content)
    torch.save(content, last)
    longer = ("--trainer.max_epochs", "3")
    sentence = run("fit", *QUICK, *longer, "--resume", "--run_dir", finished).sentence
    assert f"{last} lacks {key}" in sentence
