"""compare, views and report: real runs, real pictures."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from simclr_pl.__main__ import main
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.model.checkpoint import read_checkpoint
from simclr_pl.core.model.geometry import Geometry
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.features import encode
from simclr_pl.run.directory import RunDirectory

pytestmark = pytest.mark.long

TINY = [
    "--model.encoder=resnet18",
    "--model.optimizer=sgd",
    "--data.dataset=digits",
    "--data.batch_size=64",
    "--data.flip=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--seed_everything=3",
    "--wandb=off",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of four steps."""
    path = tmp_path_factory.mktemp("tools") / "run"
    assert main(["fit", *TINY, f"--run_dir={path}"]) == 0
    return RunDirectory(path)


@pytest.mark.long
def test_compare_scores_three_columns_and_says_what_they_are(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", f"--run_dir={run.path}", "--draws=3"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("raw pixels", "untrained", "pretrained", "3 draws"))
    result = json.loads((run.results / "logistic-val-seed3.json").read_text())
    columns = result["columns"]
    assert set(columns) == {"raw pixels", "untrained", "pretrained"}
    assert all(len(column["draws"]) == 3 for column in columns.values())
    assert result["epoch"] == 2
    assert result["split"] == "val"
    assert result["top1"] == columns["pretrained"]["all_labels"]
    assert len(result["checkpoint_sha256"]) == 64
    # Pixels of digits are worth this much to a linear classifier, whatever the encoder does.
    assert 0.9 < columns["raw pixels"]["all_labels"] < 1


def test_compare_s_untrained_encoder_is_the_one_the_run_began_with(run: RunDirectory) -> None:
    checkpoint = read_checkpoint(run.last_checkpoint)
    data = ContrastiveDataModule("digits")
    data.setup()
    assert data.mean is not None
    assert data.std is not None
    began = SimCLR("resnet18", optimizer="sgd", seed=3)
    began._build(Geometry(1, 8, data.mean, data.std))
    first = encode(began.encoder, data, "val").features
    again = encode(load_backbone(checkpoint, "it", fresh=3).encoder, data, "val").features
    torch.testing.assert_close(first, again)


@pytest.mark.long
def test_compare_fails_where_the_required_margin_is_missed(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", f"--run_dir={run.path}", "--draws=2", "--require=1e9"]) != 0
    assert "standard errors" in capsys.readouterr().err


def test_compare_names_a_class_that_has_too_few_labels(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", f"--run_dir={run.path}", "--labels_per_class=1000"]) != 0
    assert "fewer than 1000" in capsys.readouterr().err


def test_views_draws_a_picture_into_the_run(run: RunDirectory) -> None:
    assert main(["views", f"--run_dir={run.path}", "--images=3", "--epochs=1"]) == 0
    _is_a_picture(run.pictures / "views.png")


def test_views_draws_what_a_configuration_would_do(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("seed_everything: 1\ndata: {dataset: digits, scale: [0.2, 0.9]}\n")
    target = tmp_path / "out.png"
    assert main(["views", "--config", f"[{config}]", f"--out={target}", "--images=2"]) == 0
    _is_a_picture(target)


def test_views_draws_image_files_as_workers_cut_them(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (60 + number, 40), (20 * number, 100, 200)).save(folder / f"{number}.png")
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"data: {{dataset: folder, root: {folder}, image_size: 32, num_workers: 0}}\n"
    )
    target = tmp_path / "out.png"
    assert main(["views", "--config", f"[{config}]", f"--out={target}", "--images=2"]) == 0
    _is_a_picture(target)


@pytest.mark.long
def test_report_draws_the_curves(run: RunDirectory) -> None:
    assert main(["report", f"--run_dir={run.path}"]) == 0
    _is_a_picture(run.pictures / "curves.png")


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
def test_bad_arguments_are_answered_with_a_sentence(
    args: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert names in error
    assert len(error.splitlines()) == 1


def _is_a_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("L").getcolors(100_000) or []) > 20  # not blank
