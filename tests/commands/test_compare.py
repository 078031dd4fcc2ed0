"""compare: three columns, from the encoder that a run began with to the one it ended with."""

import json

import pytest
import torch
from commands import NARROW, fit, run

from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.model.checkpoint import read_checkpoint
from simclr_pl.core.model.geometry import Geometry
from simclr_pl.core.model.network import build_network
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.features import encode
from simclr_pl.run.directory import RunDirectory

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of four steps."""
    path = tmp_path_factory.mktemp("compare") / "run"
    fit(path, "--seed_everything=3")
    return RunDirectory(path)


def test_compare_scores_three_columns_and_says_what_they_are(trained: RunDirectory) -> None:
    outcome = run("compare", "--run_dir", trained.path, "--draws=3")
    assert outcome.code == 0, outcome
    printed = outcome.out
    assert all(word in printed for word in ("raw pixels", "untrained", "pretrained", "3 draws"))
    result = json.loads((trained.results / "logistic-val-seed3.json").read_text())
    columns = result["columns"]
    assert set(columns) == {"raw pixels", "untrained", "pretrained"}
    assert all(len(column["draws"]) == 3 for column in columns.values())
    assert result["epoch"] == 2
    assert result["split"] == "val"
    assert result["top1"] == columns["pretrained"]["all_labels"]
    assert len(result["checkpoint_sha256"]) == 64
    # Pixels of digits are worth this much to a linear classifier, whatever the encoder does.
    assert 0.9 < columns["raw pixels"]["all_labels"] < 1


def test_compare_s_untrained_encoder_is_the_one_the_run_began_with(trained: RunDirectory) -> None:
    checkpoint = read_checkpoint(trained.last_checkpoint)
    data = ContrastiveDataModule("digits")
    data.setup()
    assert data.mean is not None
    assert data.std is not None
    began = SimCLR("resnet10t", NARROW, optimizer="sgd", seed=3)
    build_network(began, Geometry(1, 8, data.mean, data.std))
    first = encode(began.encoder, data, "val").features
    again = encode(load_backbone(checkpoint, "it", fresh=3).encoder, data, "val").features
    torch.testing.assert_close(first, again)


def test_compare_fails_where_the_required_margin_is_missed(trained: RunDirectory) -> None:
    outcome = run("compare", "--run_dir", trained.path, "--draws=2", "--require=1e9")
    assert outcome.code != 0
    assert "standard errors" in outcome.err


def test_compare_names_a_class_that_has_too_few_labels(trained: RunDirectory) -> None:
    outcome = run("compare", "--run_dir", trained.path, "--labels_per_class=1000")
    assert outcome.code != 0
    assert "fewer than 1000" in outcome.err
