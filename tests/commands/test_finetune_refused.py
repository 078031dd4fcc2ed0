"""finetune: what goes wrong is a sentence, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from commands import run
from finetuning import FAST, as_rank, finetune, home, npz, weights
from ranks import ranks
from run_files import files, rows

from simclr_pl.core.model.checkpoint import KEY

# What goes wrong ----------------------------------------------------------------------------------


def refused(finished: Path, *args: object, code: int = 2) -> str:
    """The sentence of a command that fails before its first step and leaves nothing behind."""
    before = files(finished)
    outcome = run("finetune", *FAST, "--run_dir", finished, *args)
    assert outcome.code == code
    sentence = outcome.sentence
    assert files(finished) == before
    assert not (finished / "finetune").exists()
    return sentence


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--label_fraction", "0"), ("label_fraction is 0", "above 0 and at most 1")),
        (("--label_fraction", "1.1"), ("label_fraction is 1.1", "above 0 and at most 1")),
        (("--label_fraction", "some"), ("label_fraction", "expected float, got some")),
        (("--label_fraction", "0.001"), ("leaves class", "empty", "give at least 0.01")),
        (("--seeds",), ("seeds is empty", "--seeds 0 1 2")),
        (("--seeds", "0", "1", "0"), ("seeds", "0 twice")),
        (("--split", "train"), ("split", "train")),
        (("--splt", "val"), ("unknown key 'splt'", "did you mean 'split'")),
        (("--epochs", "0"), ("epochs is 0", "at least 1")),
        (("--batch_size", "1"), ("batch_size is 1", "at least 2")),
        (("--learning_rate", "0"), ("learning_rate is 0.0", "above 0")),
        (("--learning_rate", ".nan"), ("learning_rate is nan", "above 0")),
        (("--weight_decay", "-1"), ("weight_decay is -1.0", "0 or more")),
        (("--from_projector_layer", "-1"), ("from_projector_layer is -1", "at least 0")),
        (("--from_projector_layer", "3"), ("from_projector_layer is 3", "has 2 layers")),
        (("--from_scratch", "--head_only"), ("--from_scratch", "--head_only", "one of them")),
        (("--checkpoint", "x.ckpt"), ("--checkpoint", "--run_dir", "one of them")),
        (("--config", "nowhere.yaml"), ("nowhere.yaml",)),
        (("--data.dataset", "digit"), ("data set 'digit'", "did you mean digits")),
        (("--data.datset", "digits"), ("data.datset", "did you mean 'data.dataset'")),
        (("--trainer.device", "2"), ("trainer.device", "did you mean 'trainer.devices'")),
        (("--wandb", "of"), ("wandb", "of")),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence(
    args: tuple[str, ...], words: tuple[str, ...], finished: Path
) -> None:
    sentence = refused(finished, *args)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--trainer.precision", "65"), "got 65"),
        (("--trainer.strategy", "nope"), "nope"),
        (("--trainer.accelerator", "abacus"), "abacus"),
    ],
)
def test_what_lightning_refuses_leaves_nothing_behind(
    args: tuple[str, ...], word: str, finished: Path
) -> None:
    assert word in refused(finished, *args)


def test_the_fraction_and_a_checkpoint_are_required(finished: Path) -> None:
    assert "--label_fraction is required" in run("finetune", "--run_dir", finished).sentence
    assert "--checkpoint FILE or --run_dir RUN" in run("finetune", *FAST).sentence
    assert "nowhere" in run("finetune", *FAST, "--run_dir", "nowhere").sentence
    assert "nowhere.ckpt" in run("finetune", *FAST, "--checkpoint", "nowhere.ckpt").sentence


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"channels": 3}, ("has 1 numbers", "3 channels", "it was trained on")),
        ({"test": False}, ("no test split", "score another split")),
        ({"labels": ()}, ("no", "label")),
        ({"labels": ("train",)}, ("the test split has no labels",)),
        ({"classes": 1}, ("labels of 1 class", "at least 2")),
    ],
)
def test_data_that_cannot_be_used_is_a_sentence_before_training(
    how: dict[str, Any], words: tuple[str, ...], finished: Path, tmp_path: Path
) -> None:
    root = npz(tmp_path / "other.npz", **how)
    data = ("--data.dataset", "npz", "--data.root", root, "--label_fraction", "0.5")
    sentence = refused(finished, *data)
    assert all(word in sentence for word in words), sentence


def test_validation_labels_are_only_needed_to_score_them(finished: Path, tmp_path: Path) -> None:
    root = npz(tmp_path / "other.npz", val=True, labels=("train", "test"))
    data = ("--data.dataset", "npz", "--data.root", root, "--label_fraction", "0.5")
    assert "the val split has no labels" in refused(finished, *data, "--split", "val")
    finetune("--run_dir", finished, *data)
    table = rows(home(finished, "npz") / "finetune-0.5-seed0")
    assert not any("finetune/val_top1" in row for row in table)


def broken(path: Path, how: str) -> None:
    loaded = torch.load(path, weights_only=True)
    state = loaded["state_dict"]
    if how == "NaN":
        state["encoder.conv1.weight"][0] = torch.nan
    elif how == "newer":
        loaded[KEY]["format"] = 99
    elif how == "other architecture":
        loaded[KEY]["encoder"] |= {"name": "resnet18", "args": {}}
    elif how == "other program":
        loaded = {"state_dict": {}}
    torch.save(loaded, path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("NaN", "has weights that are not finite"),
        ("newer", "has format 99"),
        ("other architecture", "holds another architecture"),
        ("other program", "is not a checkpoint of simclr_pl"),
        ("truncated", "cannot be read"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_a_sentence(
    how: str, words: str, finished: Path
) -> None:
    broken(weights(finished), how)
    assert words in refused(finished)


def test_too_few_labels_for_the_devices_is_a_sentence(finished: Path) -> None:
    command = ("finetune", *FAST, "--run_dir", finished, "--batch_size", 3, "--epochs", 1)
    for outcome in ranks(2, as_rank, *command, "--trainer.devices", 2):
        assert outcome.code == 2
        assert "a batch has 2 of 130 labelled images, too few for 2 devices" in outcome.err
    assert not (finished / "finetune").exists()


def test_a_rate_that_is_too_large_ends_in_a_sentence_and_saves_no_nan(finished: Path) -> None:
    args = ("--run_dir", finished, "--learning_rate", "1e30")
    sentence = run("finetune", *FAST, *args).sentence
    assert "no longer a number" in sentence
    assert "lower --learning_rate" in sentence
    assert not (finished / "results").exists()
    assert not weights(home(finished)).exists()


def test_a_failure_with_weights_and_biases_leaves_nothing_behind_either(finished: Path) -> None:
    before = files(finished)
    args = ("--run_dir", finished, "--wandb", "offline", "--from_projector_layer", 3)
    late = ("--run_dir", finished, "--wandb", "offline", "--trainer.strategy", "nope")
    for command in (args, late):
        try:
            assert run("finetune", *FAST, *command).sentence
            assert wandb.run is None
        finally:
            wandb.teardown()
        assert files(finished) == before
        assert not (finished / "finetune").exists()
