"""Whatever a user gets wrong ends in one sentence that names it and a remedy, and costs nothing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import (
    QUICK,
    checkpoint,
    files,
    finish,
    rows,
    run,
    start,
)
from PIL import Image

from simclr_pl import SimCLR
from simclr_pl.core.errors import UserError


def refused(tmp_path: Path, *args: object) -> str:
    """The sentence with which `fit` refuses; no trace of the run may be left."""
    outcome = run("fit", *QUICK, "--run_dir", tmp_path / "new" / "run", *args)
    assert not (tmp_path / "new").exists(), sorted((tmp_path / "new").rglob("*"))
    return outcome.sentence


def test_a_key_is_never_taken_for_one_of_another_meaning(tmp_path: Path) -> None:
    """`model.loss` and `model.stem` have most of their letters in common: those of their group."""
    sentence = refused(tmp_path, "--model.loss", "mine.Loss")
    assert sentence == "error: unknown key 'model.loss'"


# Values -------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "misspelt key": (
        ("--model.temprature", "0.5"),
        ("model.temprature", "did you mean 'model.temperature'"),
    ),
    "shortened key": (
        ("--model.temperatur", "0.5"),
        ("model.temperatur'", "did you mean 'model.temperature'"),
    ),
    "key without its group": (
        ("--batch_size", "64"),
        ("'batch_size'", "did you mean 'data.batch_size'"),
    ),
    "key of a trainer that doesn't exist": (
        ("--trainer.max_epoch", "3"),
        ("trainer.max_epoch'", "did you mean 'trainer.max_epochs'"),
    ),
    "word for a number": (("--data.batch_size", "12x"), ("data.batch_size", "12x", "int")),
    "fraction for a count": (("--data.batch_size", "1.5"), ("data.batch_size", "1.5", "int")),
    "unknown choice": (("--model.optimizer", "sdg"), ("model.optimizer", "sdg", "sgd")),
    "unknown W&B mode": (("--wandb", "onlin"), ("wandb", "onlin", "online")),
    "unknown data set": (("--data.dataset", "digit"), ("data set 'digit'", "did you mean digits")),
    "data set like no other": (("--data.dataset", "qqq"), ("'qqq'", "digits", "cifar10", "folder")),
    "unknown encoder": (("--model.encoder", "resnet19"), ("encoder 'resnet19'", "resnet18")),
    "encoder_args that don't fit": (
        ("--model.encoder_args", '{"chanels": [8, 8, 8, 8]}'),
        ("model.encoder_args", "resnet10t", "chanels"),
    ),
    "temperature 0": (("--model.temperature", "0"), ("temperature is 0.0", "above 0")),
    "temperature below 0": (("--model.temperature", "-1"), ("temperature is -1.0", "above 0")),
    "temperature that is no number": (("--model.temperature", ".nan"), ("temperature is nan",)),
    "batch of one": (("--data.batch_size", "1"), ("data.batch_size is 1", "at least 2")),
    "batch of none": (("--data.batch_size", "0"), ("data.batch_size is 0", "at least 2")),
    "batch larger than the data": (
        ("--data.batch_size", "5000"),
        ("data.batch_size is 5000", "digits", "at most 1458"),
    ),
    "micro-batch of none": (
        ("--model.micro_batch_size", "0"),
        ("model.micro_batch_size is 0", "at least 1"),
    ),
    "micro-batch below 0": (
        ("--model.micro_batch_size", "-3"),
        ("model.micro_batch_size is -3", "at least 1"),
    ),
    "images too small": (("--data.image_size", "2"), ("image_size is 2", "at least")),
    "no projector": (("--model.projector_layers", "0"), ("projector_layers is 0", "at least 1")),
    "a word for a number or nothing": (
        ("--model.projector_hidden", "wide"),
        ("model.projector_hidden: expected one of int, null, got wide",),
    ),
    "learning rate 0": (("--model.learning_rate", "0"), ("model.learning_rate is 0", "above 0")),
    "probe's learning rate 0": (("--probe.learning_rate", "0"), ("probe.learning_rate", "above 0")),
    "flip beyond 1": (("--data.flip", "1.5"), ("flip is 1.5", "0", "1")),
    "crops larger than the image": (("--data.scale", "[0.2, 1.5]"), ("scale", "1.5")),
    "workers below 0": (("--data.num_workers", "-1"), ("data.num_workers is -1", "0 or more")),
    "checkpoints every 0 epochs": (
        ("--checkpoint.every_n_epochs", "0"),
        ("checkpoint.every_n_epochs is 0", "at least 1"),
    ),
    "no end": (("--trainer.max_epochs", "-1"), ("max_epochs", "max_steps")),
    "no batches": (("--trainer.limit_train_batches", "0"), ("trainer.limit_train_batches",)),
    "accumulated gradients": (
        ("--trainer.accumulate_grad_batches", "2"),
        ("accumulate_grad_batches", "data.batch_size", "model.micro_batch_size"),
    ),
    "accumulated gradients, later": (
        (
            "--trainer.callbacks",
            '{"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {4: 2}}}',
        ),
        ("GradientAccumulationScheduler", "data.batch_size", "model.micro_batch_size"),
    ),
    "a Trainer without anything": (("--trainer.barebones", "true"), ("barebones", "bench")),
    "no checkpoints": (
        ("--trainer.enable_checkpointing", "false"),
        ("enable_checkpointing", "checkpoint.every_n_epochs"),
    ),
    "Lightning's batch norm": (
        ("--trainer.sync_batchnorm", "true"),
        ("sync_batchnorm", "model.global_batch_norm"),
    ),
    "statistics of another number of channels": (
        ("--data.mean", "[0.5, 0.5, 0.5]"),
        ("data.mean has 3", "1 channel"),
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_cannot_be_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    args, words = VALUES[case]
    sentence = refused(tmp_path, *args)
    for word in words:
        assert word in sentence, sentence
    assert "--debug shows where" not in sentence  # that is for surprises, not for this
    assert "<class" not in sentence  # nobody at a keyboard should have to read Python's types
    assert "typing." not in sentence


def test_the_encoders_that_are_proposed_are_different_ones(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "--model.encoder", "resnet19")
    proposed = sentence.split("did you mean ")[1].rstrip("?").split(" or ")
    assert len(proposed) == len(set(proposed)) == 3, sentence


def test_debug_lets_the_traceback_through(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"temperature is 0\.0") as caught:
        run("fit", *QUICK, "--run_dir", tmp_path / "run", "--model.temperature", "0", "--debug")
    assert any(entry.path.name == "ntxent.py" for entry in caught.traceback)
    assert not (tmp_path / "run").exists()


# Files --------------------------------------------------------------------------------------------


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "--config", tmp_path / "digts.yaml")
    assert str(tmp_path / "digts.yaml") in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {batch_size: 64", ("broken.yaml", "line 1")),
        ("data:\n  batch_size: 64\n bad indent", ("broken.yaml", "line 3")),
        ("just a sentence", ("broken.yaml",)),
        ("data:\n  batchsize: 64\n", ("data.batchsize", "did you mean 'data.batch_size'")),
        ("model:\n  temperature: warm\n", ("model.temperature", "warm")),
        (
            "data: {batch_size: 64}\nmodel: {}\ndata: {flip: 0}\n",
            ("broken.yaml: key data", "line 1 and again in line 3"),
        ),
        (
            "data:\n  flip: 0\n  jitter: 1\n  flip: 1\n",
            ("broken.yaml: key flip", "line 2 and again in line 4"),
        ),
        ("data: &x\n  flip: *x\n", ("broken.yaml: *x in line 2 is part of itself",)),
        (
            "".join(
                f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 1}]\n" for i in range(9)
            ),
            ("broken.yaml", "more than 100,000 values, with aliases written out"),
        ),
        ("[" * 10_000 + "]" * 10_000, ("broken.yaml", "deeper than 100 levels")),
        ("\0", ("broken.yaml is no text",)),
    ],
)
def test_a_broken_configuration_is_refused_with_what_is_wrong(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text(text)
    sentence = refused(tmp_path, "--config", config)
    for word in words:
        assert word in sentence, sentence


def test_a_key_twice_is_refused_wherever_values_are_given(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "--data", "{flip: 0.0, flip: 0.5}")
    assert "key flip stands in line 1 and again in line 1" in sentence
    part = tmp_path / "part.yaml"
    part.write_text("flip: 0.0\nflip: 0.5\n")
    sentence = refused(tmp_path, "--data", part)
    assert str(part) in sentence
    assert "line 1 and again in line 2" in sentence


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device or a pipe"),
    "a pipe": (os.mkfifo, "is a device or a pipe"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "a huge file": (huge, "has 1,099,511,627,776 bytes and is no configuration"),
    "no text": (lambda path: path.write_bytes(b"\x80PK\3\4"), "is no text"),
}


@pytest.mark.parametrize("case", NO_FILES)
@pytest.mark.parametrize("command", [("fit", *QUICK), ("views",), ("sweep", "--local", "1")])
def test_what_is_no_configuration_is_refused_by_every_command(
    tmp_path: Path, case: str, command: tuple[str, ...]
) -> None:
    make, words = NO_FILES[case]
    config = tmp_path / "config.yaml"
    make(config)
    before = sorted(tmp_path.rglob("*"))
    where = {"fit": "--run_dir", "views": "--out", "sweep": "--out"}[command[0]]
    sentence = run(*command, f"--config={config}", where, tmp_path / "new" / "run").sentence
    assert f"{config} {words}" in sentence
    assert "YAML file" in sentence
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_is_no_group_of_values(tmp_path: Path) -> None:
    assert "/dev/zero is a device" in refused(tmp_path, "--model", "/dev/zero")
    assert "/dev/zero is a device" in run("knn", "--data", "/dev/zero", "--run_dir", "x").sentence


def test_a_run_directory_that_is_a_file_stays_that_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    sentence = run("fit", *QUICK, "--run_dir", tmp_path / "taken").sentence
    assert f"{tmp_path / 'taken'} cannot be made a run directory" in sentence
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    sentence = run("fit", *QUICK, "--run_dir", tmp_path / "taken" / "below").sentence
    assert f"{tmp_path / 'taken' / 'below'} cannot be made a run directory" in sentence


def test_a_missing_folder_of_images_is_named(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "--data.dataset", "folder", "--data.root", tmp_path / "imgs")
    assert f"there is no folder {tmp_path / 'imgs'}" in sentence
    assert "--data.root" in sentence


def test_an_empty_folder_of_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "imgs" / "cats").mkdir(parents=True)
    sentence = refused(tmp_path, "--data.dataset", "folder", "--data.root", tmp_path / "imgs")
    assert f"{tmp_path / 'imgs'} holds no images" in sentence
    assert ".jpg" in sentence


def npz(tmp_path: Path, labels: list[int]) -> Path:
    """A data set of 40 random images."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    held = {"val_images": images, "val_labels": np.array(labels)}
    path = tmp_path / "data.npz"
    np.savez(path, train_images=images, train_labels=np.arange(40) % 4, **held)
    return path


def test_a_label_below_minus_one_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, [-2, *(i % 4 for i in range(39))])
    sentence = refused(
        tmp_path, "--data.dataset", "npz", "--data.root", path, "--data.batch_size", "8"
    )
    assert f"{path} has a label -2: only -1" in sentence


def test_a_broken_image_in_a_worker_is_named_on_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for number in range(24):
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg")
    broken = folder / "07.jpg"
    broken.write_bytes(broken.read_bytes()[:150])
    data = ("--data.dataset", "folder", "--data.root", folder, "--data.num_workers", "2")
    steps = ("--data.batch_size", "24", "--trainer.limit_train_batches", "1")
    # A process of its own, with W&B as it is by default: workers that die and W&B's service may add
    # nothing to the sentence, and leave nothing behind.
    recipe = QUICK[: QUICK.index("--wandb")]
    runs = tmp_path / "runs"
    outcome = finish(start("fit", *recipe, "--run_dir", runs / "one", *data, *steps))
    assert f"{broken} cannot be decoded" in outcome.sentence
    assert "remove it" in outcome.sentence
    assert not runs.exists(), sorted(runs.rglob("*"))


# Checkpoints --------------------------------------------------------------------------------------


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
    assert "Use the configuration that wrote the checkpoint" in sentence


def test_evaluating_data_that_the_checkpoint_does_not_fit_is_refused(
    source: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)  # in colour
    labels = np.arange(40) % 4
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels)
    last = source / "checkpoints" / "last.ckpt"
    data = ("--data.dataset", "npz", "--data.root", tmp_path / "data.npz")
    sentence = run("validate", *QUICK, *data, "--ckpt_path", last).sentence
    assert "encoder.conv1.weight" in sentence


# A loss that is no longer a number ----------------------------------------------------------------


def test_a_loss_that_is_not_a_number_ends_the_run_and_spares_the_checkpoint(
    tmp_path: Path,
) -> None:
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


def test_from_python_an_error_is_an_ordinary_exception() -> None:
    with pytest.raises(UserError, match="learning_rate is 0") as caught:
        SimCLR(learning_rate=0)
    assert isinstance(caught.value, ValueError)


# What Lightning refuses, and the system -----------------------------------------------------------

TRAINER: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "accelerator": (("abc",), ("trainer.accelerator is abc", "cpu")),
    "strategy": (("[]",), ("trainer.strategy is []", "ddp")),
    "profiler": (("x",), ("trainer.profiler is x", "simple")),
    "precision": (("12",), ("trainer.precision", "got 12", "bf16-mixed")),
    "val_check_interval": (("-1", "100"), ("trainer.val_check_interval is",)),
    "max_time": (("soon",), ("trainer.max_time is soon", "DD:HH:MM:SS")),
    "devices": (("abc", "-5"), ("trainer.devices is",)),
    "max_epochs": (("0",), ("trainer.max_epochs is 0", "at least 1")),
    "max_steps": (("0",), ("trainer.max_steps is 0", "at least 1")),
    "check_val_every_n_epoch": (("0", "-1"), ("trainer.check_val_every_n_epoch is", "1 or more")),
    "log_every_n_steps": (("-1",), ("trainer.log_every_n_steps is -1",)),
    "gradient_clip_val": (("-1",), ("trainer.gradient_clip_val is -1",)),
}


def plainly_refused(tmp_path: Path, *args: object) -> str:
    """The sentence, which names no class of Python."""
    sentence = refused(tmp_path, *args)
    assert "--debug shows where" not in sentence
    assert "Error: " not in sentence
    assert "<class" not in sentence
    return sentence


@pytest.mark.parametrize("option", TRAINER)
def test_a_trainer_option_that_cannot_be_is_refused_by_its_name(
    option: str, tmp_path: Path
) -> None:
    values, words = TRAINER[option]
    for value in values:
        sentence = plainly_refused(tmp_path, f"--trainer.{option}={value}")
        for word in words:
            assert word in sentence, sentence


CHECKPOINTS = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"


def test_a_callback_that_cannot_be_made_is_refused_by_its_name(tmp_path: Path) -> None:
    sentence = plainly_refused(tmp_path, CHECKPOINTS, "--trainer.callbacks.mode=x")
    assert "ModelCheckpoint refuses its options: `mode` can be min, max but got x" in sentence
    sentence = plainly_refused(tmp_path, "--trainer.callbacks.mode=x")
    assert "trainer.callbacks.mode" in sentence
    assert "--trainer.callbacks+=CLASS" in sentence


@pytest.mark.parametrize("group", ["model", "data", "trainer", "knn"])
def test_a_list_where_keys_belong_is_refused_wherever_it_stands(
    group: str, finished: Path, tmp_path: Path
) -> None:
    words = f"{group} is [1], but must be keys with values"
    assert words in plainly_refused(tmp_path, f"--{group}", "[1]")
    config = tmp_path / "c.yaml"
    config.write_text(f"{group}: [1]\n")
    assert words in plainly_refused(tmp_path, "--config", config)
    if group == "data":
        for command in ("knn", "views"):
            args = ("--run_dir", finished) if command == "knn" else ()
            sentence = run(command, *args, f"--config={config}").sentence
            assert f"{config}: {words}" in sentence


LONG = "x" * 300


@pytest.mark.parametrize(
    "args",
    [
        ("fit", *QUICK, "--run_dir", LONG),
        ("fit", *QUICK, "--config", LONG),
        ("fit", *QUICK, "--init_from", LONG),
        ("fit", *QUICK, "--data.dataset", "folder", "--data.root", LONG),
        ("validate", "--ckpt_path", LONG),
        ("validate", "--run_dir", LONG),
        ("views", f"--run_dir={LONG}"),
        ("views", f"--config={LONG}"),
        ("knn", "--checkpoint", LONG),
        ("report", LONG),
        ("pack", LONG, "packed"),
        ("sweep", "--local", "1", "--config", LONG),
    ],
    ids=lambda args: "-".join(args[:1] + args[-2:-1])[:40],
)
def test_a_name_that_no_file_can_have_is_refused_with_its_option(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = run(*args).sentence
    assert LONG in sentence
    assert "ile name too long" in sentence
    assert "Error" not in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_an_unknown_format_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {dataset: folder, root: nowhere}\n")
    sentence = run("views", "--config", config, "--out", tmp_path / "new" / "x.xyz").sentence
    assert "x.xyz" in sentence
    assert "png" in sentence
    assert not (tmp_path / "new").exists()


def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path) -> None:
    for seed in ("-1", "4294967296"):
        assert f"seed_everything is {seed}" in plainly_refused(
            tmp_path, f"--seed_everything={seed}"
        )
    for group in ("model", "data"):
        assert f"{group}.seed is {10**20}" in plainly_refused(tmp_path, f"--{group}.seed={10**20}")


def test_an_option_without_dashes_is_told_how_it_is_written(tmp_path: Path) -> None:
    sentence = refused(tmp_path, "data.batch_size=64")
    assert "write --data.batch_size 64" in sentence


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
