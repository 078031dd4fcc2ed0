"""Runs on a manifest: killed and resumed to the same bits, with groups in the objective."""

from pathlib import Path

import pytest
from commands import QUICK, fit, run
from manifests import write_manifest
from photographs import write_digits
from run_files import checkpoint, rows
from stopping import begin, check_same_run, kill_when

pytestmark = [pytest.mark.long, pytest.mark.processes]

STEPS, EPOCHS = 6, 4


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[object, ...]:
    """Digits by a dozen writers, whose images are in no order."""
    images = tmp_path / "images"
    images.mkdir()
    write_digits(images, 120)
    listed = [
        (str(path.relative_to(images)), path.parent.name, f"writer {int(path.stem) % 12}")
        for path in sorted(images.rglob("*.png"), key=lambda path: path.stem[::-1])
    ]
    root = write_manifest(images / "list.csv", listed, "path,label,group")
    return (
        *("--data.dataset", "manifest", "--data.root", root, "--data.num_workers", "1"),
        *("--data.batch_size", "20", "--trainer.limit_train_batches", STEPS),
        *("--trainer.max_epochs", EPOCHS, "--checkpoint.every_n_steps", "2"),
        *("--model.objective", "strangers.strangers", "--knn.every_n_epochs", "0"),
    )


def test_a_run_killed_and_resumed_ends_in_the_same_bits(
    tmp_path: Path, recipe: tuple[object, ...]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = fit(whole, *recipe).out
    assert "manifest: validation has whole groups (2 groups: 20 of 120 images, 16.7%)" in said
    process = begin(killed, *QUICK, *recipe, "--resume")
    kill_when(process, lambda: len(rows(killed)) % STEPS in (3, 5))
    assert 2 <= checkpoint(killed)["global_step"] < STEPS * EPOCHS
    assert fit(killed, *recipe, "--resume").err == ""
    check_same_run(killed, whole)


def test_evaluations_draw_whole_groups_and_say_so(
    tmp_path: Path, recipe: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "run", *recipe, "--trainer.max_epochs", "1")
    share = ("--label_fraction", "0.5", "--split", "val", "--wandb", "off")
    for command in (("linear",), ("knn",), ("finetune", "--epochs", "1")):
        monkeypatch.setattr("simclr_pl.images.readers.reader._said", set())
        outcome = run(*command, *share, "--run_dir", tmp_path / "run")
        assert outcome.code == 0, outcome
        assert "label_fraction 0.5 draws whole groups (5 groups: 50 of 100 labelled" in outcome.out
    few = ("--labels_per_class", "2", "--draws", "2", "--wandb", "off")
    outcome = run("compare", "--run_dir", tmp_path / "run", *few)
    assert outcome.code == 0, outcome
