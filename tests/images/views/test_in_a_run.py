"""The extended views in runs: from the command line, YAML and Python, killed and resumed."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from commands import NARROW, QUICK, QUIET, REPOSITORY, fit, refused, run, start
from distances import far
from noise import pictures, write_images
from run_files import checkpoint, rows, same_weights
from stopping import kill_when

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.commandline.target import DataChoice, find_pretrained
from simclr_pl.core.data.sources import ArrayImages, Splits
from simclr_pl.images.views.extended import MoreViews
from simclr_pl.pictures.views import draw_views

ALL: dict[str, Any] = {
    "vertical_flip": 0.5, "quarter_turns": True, "rotation": 15, "padding": 1, "solarise": 0.2,
}  # fmt: skip

GIVEN = [(f"--data.views.{key}", str(value).lower()) for key, value in ALL.items()]

OPTIONS = ("--data.views", "extended", *(word for pair in GIVEN for word in pair))

LONGER = ("--trainer.limit_train_batches", "6", "--trainer.max_epochs", "3")


@pytest.mark.timeout(400)
def test_killed_and_resumed_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    one, whole = tmp_path / "one", tmp_path / "whole"
    recipe = (*QUICK, *LONGER, *OPTIONS, "--checkpoint.every_n_steps", "2", "--resume")
    process = start("fit", *recipe, "--run_dir", one, cwd=REPOSITORY)
    kill_when(process, lambda: len(rows(one)) in (8, 9, 10))
    assert 6 <= checkpoint(one)["global_step"] < 12
    for directory in (one, whole):
        assert run("fit", *recipe, "--run_dir", directory).err == ""
    assert same_weights(checkpoint(one), checkpoint(whole))
    assert far(*(checkpoint(directory)["optimizer_states"] for directory in (one, whole))) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("extended") / "run"
    done = fit(directory, *OPTIONS)
    assert "extended, 2 of each image" in done.out
    return directory


def test_the_recipe_keeps_them(trained: Path) -> None:
    kept = yaml.safe_load((trained / "config.yaml").read_text())
    assert kept["data"]["views"] == {"class_path": "extended", "init_args": ALL}
    assert kept["data"]["grayscale"] is None


def test_another_value_is_no_resume(trained: Path) -> None:
    other = [word if word != "15" else "20" for word in OPTIONS]
    done = run("fit", *QUICK, *other, "--run_dir", trained, "--resume")
    assert "data.views.init_args.rotation was 15" in done.sentence


def test_print_config_and_yaml(tmp_path: Path) -> None:
    printed = run("fit", *QUICK, *OPTIONS, "--print_config")
    assert printed.code == 0
    written = yaml.safe_load(printed.out)["data"]["views"]
    assert written == {"class_path": "extended", "init_args": ALL}
    recipe = tmp_path / "more.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"views": written}}))
    done = run("fit", *QUICK, "--config", recipe, "--run_dir", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    more = run("fit", *QUICK, *OPTIONS, "--run_dir", tmp_path / "run", "--resume")
    assert more.code == 0, more


@pytest.mark.parametrize(
    "command",
    [
        ("views", "--images", "2", "--epochs", "1"),
        ("linear", "--split", "val", "--epochs", "1"),
        ("linear", "--split", "val", "--epochs", "1", "--augment"),
        ("finetune", "--label_fraction", "0.1", "--epochs", "1", "--split", "val"),
        ("validate",),
    ],
    ids=" ".join,
)
def test_other_commands_find_them(trained: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    wandb = () if name in ("views", "validate") else ("--wandb", "off")
    done = run(name, "--run_dir", trained, *options, *wandb)
    assert done.code == 0, done


def test_colours_are_left_alone_where_features_are_scored(trained: Path) -> None:
    """As the paper's are: `linear --augment` crops and flips, and here turns and shifts."""
    data = find_pretrained(None, str(trained), None, DataChoice()).data()
    assert isinstance(data.views, MoreViews)
    got = (data.views.jitter, data.views.blur, data.views.solarise, data.views.rotation)
    assert got == (0, 0, 0, 15)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("rotation", "200", "data.views.rotation is 200, but must be degrees"),
        ("padding", "1.5", "data.views.padding is 1.5, but must be whole pixels"),
        ("solarize", "0.2", "takes no argument 'solarize'"),
    ],
)
def test_a_bad_value_is_a_sentence(tmp_path: Path, option: str, value: str, sentence: str) -> None:
    views = ("--data.views", "extended", f"--data.views.{option}", value)
    assert sentence in refused(tmp_path, *views)


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_turned_files_train_to_the_same_bits_with_any_number_of_workers(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 24, 20, 26)
    files = ("--data.dataset", "folder", "--data.root", images, "--data.batch_size", "8")
    views = ("--data.views", "extended", "--data.views.rotation", "40")
    for workers in (0, 2):
        fit(tmp_path / str(workers), *files, *views, "--data.num_workers", workers)
    assert same_weights(*(checkpoint(tmp_path / str(workers)) for workers in (0, 2)))


def thirteen_bands(**options: Any) -> ContrastiveDataModule:
    train, val = (ArrayImages(pictures(n, 13, 12, 12), torch.arange(n) % 2) for n in (48, 16))
    return ContrastiveDataModule(
        Splits(train, val, None, ("a", "b")), batch_size=16, num_workers=0, **options
    )


def test_thirteen_bands_train_from_python() -> None:
    data = thirteen_bands(views={"class_path": "extended", "init_args": {**ALL, "padding": 0}})
    trainer = L.Trainer(**QUIET, max_steps=4)
    trainer.fit(SimCLR("resnet10t", encoder_args=NARROW, warmup_epochs=0), data)
    assert isinstance(data.views, MoreViews)
    assert trainer.global_step == 4
    assert bool(trainer.callback_metrics["train/loss"].isfinite())
    assert data.views.grayscale == 0
    title = draw_views(data, 2, 1).get_suptitle()
    assert "the mean of 13 bands" in title


@pytest.mark.parametrize("given", ["extended", MoreViews, {"class_path": "extended"}])
def test_by_name_or_class_without_arguments_they_are_the_papers(given: Any) -> None:
    made = []
    for views in (given, None):
        data = thirteen_bands(views=views)
        data.setup()
        batch = next(iter(data.splits.train.batches([torch.arange(9)], 2, "views")))
        made.append(data.make_views(batch).views)
    assert made[0].equal(made[1])
