"""finetune as LightningCLI: recipes, Lightning's options, help, and recipes of older runs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY, run
from finetuning import FAST, assert_same_bits, finetune, home, weights
from run_files import checkpoint, files, result

from simclr_pl.run.results import sha256

pytestmark = pytest.mark.long


def test_a_recipe_in_yaml_is_the_same_as_options_and_config_yaml_repeats_the_run(
    finished: Path, tmp_path: Path
) -> None:
    finetune("--run_dir", finished, "--learning_rate", "0.3")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: {learning_rate: 0.3}\ndata: {label_fraction: 0.1, batch_size: 50}\n"
        "trainer: {accelerator: cpu, max_epochs: 4, log_every_n_steps: 1}\nwandb: off\n"
    )
    for config, more in ((recipe, ("--run_dir", finished)), (home(finished) / "config.yaml", ())):
        out = tmp_path / config.stem
        done = run("finetune", "--config", config, *more, "--out", out)
        assert (done.code, done.err) == (0, ""), done
        assert_same_bits(home(finished), out / "finetune-0.1-seed0")


def test_a_recipe_of_pretraining_gives_the_data_alone(finished: Path) -> None:
    recipe = REPOSITORY / "configs" / "digits.yaml"
    finetune("--run_dir", finished, "--config", recipe)
    config = yaml.safe_load((home(finished) / "config.yaml").read_text())
    assert (config["data"]["scale"], config["data"]["flip"]) == ([0.3, 1.0], 0.0)
    assert (config["data"]["batch_size"], config["data"]["image_size"]) == (50, 8)
    assert config["model"]["learning_rate"] == 0.05
    assert config["trainer"]["max_epochs"] == 4


def test_config_without_a_file_is_refused(finished: Path) -> None:
    said = run("finetune", "--run_dir", finished, "--config").sentence
    assert "--config: expected one argument" in said


def test_print_config_shows_the_checkpoint_s_data_and_trains_nothing(finished: Path) -> None:
    before = files(finished)
    done = run("finetune", *FAST, "--run_dir", finished, "--from_scratch", "--print_config")
    assert (done.code, done.err) == (0, "")
    printed = yaml.safe_load(done.out)
    assert (printed["data"]["dataset"], printed["data"]["image_size"]) == ("digits", 8)
    assert printed["model"]["checkpoint"] == str(weights(finished))
    assert (printed["model"]["from_scratch"], printed["model"]["learning_rate"]) == (True, 0.2)
    assert (printed["seed_everything"], printed["trainer"]["max_epochs"]) == (0, 4)
    assert files(finished) == before


def test_lightnings_callbacks_and_options_are_there(finished: Path) -> None:
    best = {"monitor": "finetune/val_top1", "mode": "max", "filename": "best"}
    given = yaml.safe_dump([{"class_path": "ModelCheckpoint", "init_args": best}])
    finetune("--run_dir", finished, "--trainer.callbacks", given, "--trainer.max_steps", 7)
    saved = {path.name for path in (home(finished) / "checkpoints").glob("*.ckpt")}
    assert saved == {"last.ckpt", "best.ckpt"}
    assert checkpoint(home(finished))["global_step"] == 7


def test_help_has_two_screens_and_lightnings_own_options_behind_its_group() -> None:
    lines = run("finetune", "--help").out.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    for words in (
        *("--label_fraction, --data.label_fraction", "--checkpoint, --model.checkpoint"),
        *("--epochs, --trainer.max_epochs", "default: 60, more of few images: 1,000 steps"),
        *("--run_dir", "--seeds", "--split", "--out", "--resume", "--wandb", "--data.dataset"),
    ):
        assert words in text, words
    assert not any(line.startswith("  --trainer.") for line in lines)
    assert "--trainer.devices" in run("finetune", "--help", "trainer").out


@pytest.mark.parametrize(
    "option", [("--trainer.limit_test_batches", "1"), ("--trainer.fast_dev_run", "true")]
)
def test_a_score_of_a_part_of_the_split_is_refused(option: tuple[str, ...], finished: Path) -> None:
    before = files(finished)
    sentence = run("finetune", *FAST, "--run_dir", finished, *option).sentence
    assert "would score a part of the test split" in sentence
    assert files(finished) == before


# Runs of older versions ---------------------------------------------------------------------------


def as_once(run_dir: Path, checkpoint_path: Path) -> None:
    """Gives a run the config.yaml that it would have had before `finetune` took recipes."""
    now = yaml.safe_load((run_dir / "config.yaml").read_text())
    kept = ("accelerator", "devices", "num_nodes", "strategy", "precision", "gradient_clip_val")
    kept += ("deterministic", "log_every_n_steps", "enable_progress_bar", "max_epochs")
    data = ("dataset", "root", "batch_size", "image_size", "scale", "flip", "mean", "std")
    data += ("num_workers", "split_seed", "on_bad_image", "max_pixels")
    once: dict[str, Any] = {
        "seed_everything": now["seed_everything"],
        "checkpoint": {"path": str(checkpoint_path)},
        "checkpoint_sha256": sha256(checkpoint_path),
        "label_fraction": 0.1, "from_projector_layer": 0, "from_scratch": False,
        "head_only": False, "batch_size": 50, "learning_rate": 0.05, "weight_decay": 0.0,
        "labels": 130, "classes": 10,
        "data": {key: now["data"][key] for key in data}
        | {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0},
        "trainer": {key: now["trainer"][key] for key in kept},
        "wandb": now["wandb"], "tensorboard": False,
    }  # fmt: skip
    (run_dir / "config.yaml").write_text(yaml.safe_dump(once, sort_keys=False))


def test_a_run_that_an_older_version_began_is_resumed_by_the_same_rules(finished: Path) -> None:
    finetune("--run_dir", finished)
    twin = finished / "twin"
    shutil.copytree(home(finished), twin / "finetune-0.1-seed0")
    as_once(home(finished), weights(finished))
    before = files(home(finished))
    longer = ("--run_dir", finished, "--resume", "--epochs", 8)
    for option, words in (
        (("--learning_rate", "0.2"), "model.learning_rate was 0.05"),
        (("--batch_size", "60"), "data.batch_size was 50"),
        (("--trainer.precision", "64-true"), "trainer.precision was 32-true"),
        (("--trainer.limit_train_batches", "2"), "trainer.limit_train_batches was None"),
    ):
        assert words in run("finetune", *FAST, *longer, *option).sentence
    assert files(home(finished)) == before
    for command in ("fit", "validate"):
        sentence = run(command, "--config", home(finished) / "config.yaml").sentence
        assert "is the config of a fine-tuning run" in sentence
    finetune(*longer)
    scored = result(finished / "results" / "finetune-0.1-test-seed0.json")
    finetune(*longer, "--out", twin)
    assert_same_bits(home(finished), twin / "finetune-0.1-seed0")
    assert result(finished / "results" / "finetune-0.1-test-seed0.json") == scored
    assert checkpoint(home(finished))["global_step"] == 24
