"""Options and values that cannot be end in one sentence with a remedy, and cost nothing."""

from pathlib import Path

import pytest
from commands import QUICK, refused, run

from simclr_pl import SimCLR
from simclr_pl.core.errors import UserError


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


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["views"], "--config"),
        (["views", "--config", "[nowhere.yaml]"], "nowhere.yaml"),
        (["report", "--run_dir=nowhere"], "nowhere"),
        (["compare", "--run_dir=nowhere"], "nowhere"),
        (["compare", "--run_dir=nowhere", "--draws=1"], "2 draws"),
        (["compare", "--run_dir=nowhere", "--splt=val"], "split"),
    ],
)
def test_bad_arguments_are_answered_with_a_sentence(args: list[str], names: str) -> None:
    outcome = run(*args)
    assert outcome.code == 2
    assert names in outcome.sentence
