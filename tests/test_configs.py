"""Every recipe that is shipped is parsed, built and, where it costs little, trained."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from commands import REPOSITORY, run
from PIL import Image
from run_files import checkpoint, rows

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.commandline.options import Parser
from simclr_pl.commands.fit import PretrainingCLI
from simclr_pl.core.batch import Batch
from simclr_pl.core.data import datamodule
from simclr_pl.core.data.sources import ArrayImages, Splits
from simclr_pl.core.model import optim
from simclr_pl.core.model.encoder import EncoderSpec, build_encoder
from simclr_pl.images.datasets import DATASETS
from simclr_pl.images.readers.folder import read_folder
from simclr_pl.monitors.linear import LinearEvaluation

CONFIGS = REPOSITORY / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "sweep.yaml")
OVERLAYS = sorted(path.name for path in (CONFIGS / "with").glob("*.yaml"))

HERE = (
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"),
    *("--trainer.strategy", "auto", "--trainer.precision", "32-true", "--wandb", "off"),
)
"""What any machine has."""


class Plan(NamedTuple):
    """A recipe's arithmetic, worked out by hand.

    Attributes:
        channels: of its images.
        side: of its views, in pixels.
        parameters: of the encoder.
        images: that it trains on (of data of the user's own: ten thousand).
        steps: an epoch.
        peak: the learning rate behind warm-up.
        warmup: steps of it.
    """

    channels: int
    side: int
    parameters: int
    images: int
    steps: int
    peak: float
    warmup: int


PLANS = {
    "cifar.yaml": Plan(3, 32, 11_168_832, 50_000, 97, 0.6, 970),
    "cifar100.yaml": Plan(3, 32, 11_168_832, 50_000, 195, 0.3, 1950),
    "digits.yaml": Plan(1, 8, 1_237_504, 1_458, 5, 0.2, 50),
    "fashion_mnist.yaml": Plan(1, 28, 1_237_504, 60_000, 234, 0.2, 234),
    "imagenet.yaml": Plan(3, 224, 23_508_032, 1_281_167, 312, 4.8, 3120),
    "imagenet100.yaml": Plan(3, 224, 11_176_512, 127_000, 992, 0.15, 9920),
    "medical.yaml": Plan(1, 224, 11_170_240, 10_000, 39, 0.3, 390),
    "multispectral.yaml": Plan(13, 64, 11_174_592, 27_000, 52, 0.6, 520),
    "photographs.yaml": Plan(3, 224, 23_508_032, 10_000, 39, 1.2, 390),
    "stl10.yaml": Plan(3, 64, 11_168_832, 105_000, 205, 2e-3, 410),
    "tiny_imagenet.yaml": Plan(3, 64, 11_168_832, 100_000, 195, 2e-3, 390),
    "vit.yaml": Plan(3, 224, 21_665_664, 1_281_167, 1251, 8e-4, 50_040),
}


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


def test_each_recipe_has_a_plan() -> None:
    assert sorted(PLANS) == RECIPES


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
    channels, side, parameters, *_ = PLANS[name]
    spec = EncoderSpec(
        hparams["encoder"], channels, side, hparams["stem"], hparams["encoder_args"] or {}
    )
    encoder = build_encoder(spec)
    assert sum(p.numel() for p in encoder.module.parameters()) == parameters
    images = torch.zeros(1, channels, side, side)
    assert encoder.module.eval()(images).shape == (1, encoder.width)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_schedule_is_the_one_that_its_comments_work_out(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = build(monkeypatch, tmp_path, "--config", CONFIGS / name)
    plan, settings = PLANS[name], built.model.optimization
    steps = plan.images // built.datamodule.batch_size
    assert steps == plan.steps
    peak = optim.peak_learning_rate(settings, built.datamodule.batch_size)
    assert peak == pytest.approx(plan.peak)
    built.trainer.fit_loop.max_batches = steps  # as counted where the data are
    assert optim.warmup_steps(settings, built.trainer) == plan.warmup
    optimizer = optim.build_optimizer(torch.nn.Linear(2, 2), settings, peak)
    total = steps * built.trainer.max_epochs
    factor = optim.WarmupCosine(optimizer, plan.warmup, total).lr_lambdas[0]
    assert factor(plan.warmup - 1) == factor(plan.warmup) == 1
    assert factor(total) == pytest.approx(0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_views_are_made_of_images_like_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = ("--config", CONFIGS / name, "--data.compiled", "false")
    data = build(monkeypatch, tmp_path, *plain).datamodule
    channels, side, *_ = PLANS[name]
    images = torch.randint(256, (4, channels, side, side), dtype=torch.uint8)
    split = ArrayImages(images, torch.tensor([0, 1, 0, 1]))
    monkeypatch.setattr(
        datamodule, "read_dataset", lambda *_: Splits(split, split, None, ("a", "b"), None)
    )
    data.setup()
    index = torch.arange(4)
    views = data.make_views(Batch(images, split.labels, index, 0)).views
    assert views.shape == (8, channels, side, side)
    assert views.isfinite().all()
    assert not torch.equal(views[:4], views[4:])
    recipe = yaml.safe_load((CONFIGS / name).read_text())["data"]
    for key in ("flip", "jitter", "grayscale", "blur"):
        assert getattr(data.makes_views, key) == recipe[key]
    more = recipe.get("views", {}).get("init_args", {})
    assert {key: getattr(data.makes_views, key) for key in more} == more


def lines_of(name: str) -> str:
    """The shell lines of a recipe's note on its data."""
    note = (CONFIGS / name).read_text().split("\n# Data ")[1].split("\n# Hardware ")[0]
    return "\n".join(line[4:] for line in note.splitlines() if re.match(r"#   (?=\S|  \S)", line))


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def found_in(root: Path) -> tuple[int, int, tuple[str, ...]]:
    """Images of train and val, and classes."""
    raw = read_folder(root)
    assert raw.val is not None
    assert raw.test is None
    return len(raw.train), len(raw.val), raw.classes


def test_tiny_imagenets_lines_make_folders_of_its_val(tmp_path: Path) -> None:
    root = tmp_path / "data" / "tiny-imagenet-200"
    for name in ("n1", "n2"):
        image(root / "train" / name / "images" / f"{name}_0.JPEG")
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    for number in range(3):
        image(root / "val" / "images" / f"val_{number}.JPEG")
    rows = (
        "val_0.JPEG\tn2\t0\t0\t7\t7",
        "val_1.JPEG\tn1\t0\t0\t7\t7",
        "val_2.JPEG\tn2\t0\t0\t7\t7",
    )
    (root / "val" / "val_annotations.txt").write_text("".join(f"{row}\n" for row in rows))
    image(root / "test" / "images" / "test_0.JPEG")
    subprocess.run(["bash", "-ec", lines_of("tiny_imagenet.yaml")], cwd=tmp_path, check=True)
    assert found_in(root) == (2, 3, ("n1", "n2"))
    assert sorted(path.name for path in (root / "val" / "n2").iterdir()) == [
        "val_0.JPEG",
        "val_2.JPEG",
    ]


def test_imagenet_100s_lines_link_to_the_listed_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("n1", "n2", "n3"):
            image(tmp_path / "data" / "imagenet" / split / name / f"{name}_{split}.JPEG")
    (tmp_path / "imagenet100.txt").write_text("n1\nn3\n")
    subprocess.run(["bash", "-ec", lines_of("imagenet100.yaml")], cwd=tmp_path, check=True)
    assert found_in(tmp_path / "data" / "imagenet100") == (2, 2, ("n1", "n3"))


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
