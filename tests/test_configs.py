"""Every recipe that is shipped is parsed, built and, where it costs little, trained."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from commands import REPOSITORY, run
from run_files import checkpoint, rows

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.commandline.options import Parser
from simclr_pl.commands.fit import PretrainingCLI
from simclr_pl.core.model.encoder import EncoderSpec, build_encoder
from simclr_pl.images.datasets import DATASETS
from simclr_pl.monitors.linear import LinearEvaluation

CONFIGS = REPOSITORY / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "sweep.yaml")
OVERLAYS = sorted(path.name for path in (CONFIGS / "with").glob("*.yaml"))

HERE = (
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"),
    *("--trainer.strategy", "auto", "--trainer.precision", "32-true", "--wandb", "off"),
)
"""What any machine has."""

IMAGES = {
    "digits": (1, 8),
    "fashion_mnist": (1, 28),
    "cifar10": (3, 32),
    "cifar100": (3, 32),
    "stl10": (3, 96),
    "folder": (3, 224),
    "npz": (3, 32),
}
"""Channels and side of each data set's images."""


class Built(PretrainingCLI):
    """The command line, up to the point where training would begin."""

    def fit(self, **kwargs: object) -> None:
        assert isinstance(self.model, SimCLR)
        assert isinstance(self.datamodule, ContrastiveDataModule)
        assert self.datamodule.dataset in DATASETS


def build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *args: object, here: bool = True
) -> Built:
    """Everything that `fit ARGS` builds; no data is read, nothing is trained."""
    command = ["fit", *map(str, args), *(HERE if here else ()), "--run_dir", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["simclr_pl", *command])
    monkeypatch.chdir(tmp_path)  # no data here
    return Built(
        SimCLR,
        ContrastiveDataModule,
        parser_class=Parser,
        seed_everything_default=0,
        save_config_callback=None,
        load_from_checkpoint_support=False,
    )


def test_there_are_recipes() -> None:
    assert "digits.yaml" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_builds_without_its_data(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = build(monkeypatch, tmp_path, "--config", CONFIGS / name)
    recipe = yaml.safe_load((CONFIGS / name).read_text())
    assert built.datamodule.dataset == recipe["data"]["dataset"]
    assert built.datamodule.batch_size == recipe["data"]["batch_size"]
    assert built.datamodule.channels is None  # not read
    for key, value in recipe["model"].items():
        assert built.model.hparams[key] == value, key


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_encoder_fits_its_images(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hparams = build(monkeypatch, tmp_path, "--config", CONFIGS / name).model.hparams
    data = yaml.safe_load((CONFIGS / name).read_text())["data"]
    channels, side = IMAGES[data["dataset"]]
    side = data.get("image_size") or side
    spec = EncoderSpec(
        hparams["encoder"], channels, side, hparams["stem"], hparams["encoder_args"] or {}
    )
    encoder = build_encoder(spec)
    images = torch.zeros(1, channels, side, side)
    assert encoder.module.eval()(images).shape == (1, encoder.width)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_begins_with_a_lab_note(name: str) -> None:
    text = (CONFIGS / name).read_text()
    note = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("#")
    assert any(f"configs/{name}" in line for line in note), "no command"
    assert any(line.startswith("# Hardware") for line in note)
    assert any(line.startswith("# Expected") for line in note)
    assert not re.search(r"\b(TODO|EXPECTED|TIME)\b", text), "a number is still to be filled in"
    recipe = yaml.safe_load(text)
    assert recipe["trainer"].keys() >= {"max_epochs"}
    assert recipe["data"].keys() >= {"dataset", "batch_size"}
    assert recipe["model"].keys() >= {"encoder", "temperature", "optimizer", "learning_rate"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_of_a_machine_builds_over_a_recipe_and_leaves_it_alone(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = CONFIGS / "digits.yaml"
    built = build(monkeypatch, tmp_path, "--config", recipe, "--config", CONFIGS / "with" / name)
    plain = yaml.safe_load(recipe.read_text())
    for key, value in plain["model"].items():
        assert built.model.hparams[key] == value, key
    assert built.datamodule.batch_size == plain["data"]["batch_size"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_asks_for_linear_evaluation_on_val_at_a_few_epochs(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = build(monkeypatch, tmp_path, "--config", CONFIGS / name).trainer
    (linear,) = (c for c in trainer.callbacks if isinstance(c, LinearEvaluation))
    assert not linear.test_at_end
    assert 1 <= trainer.max_epochs / linear.every_n_epochs <= 5
    assert linear.every_n_epochs % trainer.check_val_every_n_epoch == 0


@pytest.mark.long
def test_digits_recipe_trains_as_shipped_but_for_its_length(tmp_path: Path) -> None:
    recipe = ("--config", CONFIGS / "digits.yaml", "--wandb", "off")
    outcome = run("fit", *recipe, "--trainer.max_epochs", "1", "--run_dir", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert checkpoint(tmp_path / "run")["global_step"] == 1458 // 256


@pytest.mark.data
@pytest.mark.long
def test_fashion_mnist_trains_an_epoch_through_its_recipe(tmp_path: Path) -> None:
    recipe = ("--config", CONFIGS / "fashion_mnist.yaml", *HERE, "--data.batch_size", "64")
    limits = [
        word for split in ("train", "val") for word in (f"--trainer.limit_{split}_batches", "2")
    ]
    data = ("--data.root", tmp_path / "data", "--trainer.max_epochs", "1")
    data = (*data, "--trainer.check_val_every_n_epoch", "1", "--linear.every_n_epochs", "0")
    small = ("--trainer.log_every_n_steps", "1", "--data.image_size", "14")
    outcome = run("fit", *recipe, *data, *limits, *small, "--run_dir", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert "fashion_mnist: 60000 images (54000 labelled for the probe)" in outcome.out
    assert "6000 for validation, 10 classes" in outcome.out
    table = rows(tmp_path / "run")
    assert [row["step"] for row in table] == ["0", "1"]
    assert 0 <= float(table[-1]["probe/val_top1"]) <= float(table[-1]["probe/val_top5"]) <= 1
