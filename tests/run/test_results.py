"""`validate`, `test`, `predict`: the run's own numbers again, in files that say what they are."""

import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import QUICK, fit, run
from noise import write_npz
from run_files import checkpoint, files, rows
from run_files import result as read

from simclr_pl import ContrastiveDataModule, load_encoder
from simclr_pl.pictures.page import results_table
from simclr_pl.pictures.read_runs import read_runs
from simclr_pl.run.results import sha256, write_result

FIELDS = {
    *("protocol", "split", "seed", "loss", "top1", "top5", "epoch", "dataset", "checkpoint"),
    *("checkpoint_sha256", "versions"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has seen enough to know digits from one another; read only."""
    directory = tmp_path_factory.mktemp("source") / "run"
    longer = ("--trainer.max_epochs", "6", "--trainer.limit_train_batches", "11")
    fit(directory, *longer, "--probe.learning_rate", "0.1", "--seed_everything", "3")
    return directory


def result(directory: Path, split: str) -> dict[str, Any]:
    """What an evaluation has written."""
    return read(directory / "results" / f"probe-{split}-seed3.json")


@pytest.mark.long
def test_validate_gives_the_last_epochs_numbers_again(finished: Path) -> None:
    outcome = run("validate", "--run_dir", finished)
    assert (outcome.code, outcome.err) == (0, "")
    found, last = result(finished, "val"), rows(finished)[-1]
    assert found["top1"] == pytest.approx(float(last["probe/val_top1"]), abs=1e-6)
    assert found["top5"] == pytest.approx(float(last["probe/val_top5"]), abs=1e-6)
    assert found["loss"] == pytest.approx(float(last["val/loss"]), rel=1e-5)
    assert found["top1"] > 0.15  # a number that says something: chance is 0.1
    for name in ("loss", "top1", "top5"):
        assert f"val {name}: {found[name]:.4f}\n" in outcome.out
    assert "online probe on frozen features" in outcome.out
    assert str(finished / "results" / "probe-val-seed3.json") in outcome.out


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_a_result_says_what_it_is(finished: Path, command: str, split: str) -> None:
    before = files(finished)
    assert run(command, "--run_dir", finished).code == 0
    found = result(finished, split)
    assert found.keys() == FIELDS
    last = finished / "checkpoints" / "last.ckpt"
    assert (found["protocol"], found["split"], found["seed"]) == ("probe", split, 3)
    assert (found["dataset"], found["epoch"]) == ("digits", 6)
    assert found["checkpoint"] == str(last)
    assert found["checkpoint_sha256"] == hashlib.sha256(last.read_bytes()).hexdigest()
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"].keys() >= {"python", "simclr_pl", "lightning", "scikit-learn"}
    assert 0 <= found["top1"] <= found["top5"] <= 1
    after = files(finished)
    assert after.pop(f"results/probe-{split}-seed3.json")
    assert after == before  # evaluating changes nothing else


def test_the_test_split_is_counted_to_the_image(finished: Path) -> None:
    run("test", "--run_dir", finished)
    found = result(finished, "test")
    for name in ("top1", "top5"):  # 339 images, each once: not 384, not 256
        assert found[name] * 339 == pytest.approx(round(found[name] * 339), abs=1e-3)


def test_a_result_does_not_depend_on_the_batch(finished: Path) -> None:
    top1 = []
    for batch in ("128", "50"):
        assert run("validate", "--run_dir", finished, "--data.batch_size", batch).code == 0
        top1.append(result(finished, "val")["top1"])
    assert top1[0] == pytest.approx(top1[1], abs=1e-6)


def test_another_checkpoint_of_the_run_may_be_named(finished: Path, tmp_path: Path) -> None:
    kept = finished / "checkpoints" / "epoch=0001.ckpt"
    state = checkpoint(finished)
    state["epoch"] = 0
    torch.save(state, kept)
    outcome = run("validate", "--run_dir", finished, "--ckpt_path", kept)
    assert outcome.code == 0, outcome
    assert result(finished, "val")["checkpoint"] == str(kept)
    assert result(finished, "val")["epoch"] == 1


def test_the_run_may_be_given_with_an_equals_sign(finished: Path) -> None:
    outcome = run("validate", f"--run_dir={finished}")
    assert outcome.code == 0, outcome
    assert result(finished, "val")["epoch"] == 6


def test_a_checkpoint_with_its_config_is_enough_and_its_result_goes_to_its_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, last = finished / "config.yaml", finished / "checkpoints" / "last.ckpt"
    outcome = run("validate", "--config", config, "--ckpt_path", last)
    assert outcome.code == 0, outcome
    assert result(finished, "val")["top1"] == pytest.approx(
        float(rows(finished)[-1]["probe/val_top1"]), abs=1e-6
    )
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]  # no empty runs/


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_predict_writes_each_image_of_a_split_once_in_order(finished: Path, split: str) -> None:
    choice = () if split == "val" else ("--data.predict_split", split)
    outcome = run("predict", "--run_dir", finished, *choice)
    assert (outcome.code, outcome.err) == (0, "")
    path = finished / f"features-{split}.npz"
    assert str(path) in outcome.out
    with np.load(path) as file:
        features, labels, index = (file[name] for name in ("features", "labels", "index"))
    count = {"val": 146, "test": 339, "train": 1458}[split]
    assert np.array_equal(index, np.arange(count))
    assert features.shape == (count, 16)
    assert features.dtype == np.float32
    data = ContrastiveDataModule("digits", image_size=8)
    data.setup()
    assert np.array_equal(labels, getattr(data.splits, split).labels.numpy())
    # They are the encoder's features of the clean images, and of the right ones.
    encoder = load_encoder(finished / "checkpoints" / "last.ckpt")
    some = torch.tensor([0, 1, count // 2, count - 1])
    batch = next(iter(getattr(data.splits, split).batches([some], 0, "clean")))
    with torch.no_grad():
        expected = encoder(data.make_clean(batch, views=False).clean)
    assert np.allclose(features[some.numpy()], expected.numpy(), atol=1e-4)


def test_predicting_an_unknown_split_is_refused(finished: Path) -> None:
    sentence = run("predict", "--run_dir", finished, "--data.predict_split", "tst").sentence
    assert "data.predict_split" in sentence
    assert re.search("train.*val.*test", sentence)


def test_evaluating_without_a_test_split_says_so(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz", 8, 8)
    data = ("--data.dataset", "npz", "--data.root", tmp_path / "data.npz")
    fit(tmp_path / "run", *data, "--data.batch_size", "16")
    sentence = run("test", "--run_dir", tmp_path / "run").sentence
    assert "has no test split" in sentence
    assert not (tmp_path / "run" / "results").exists()


def test_without_labels_there_is_a_loss_and_no_accuracy(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz", 8, 8, classes=0)
    data = ("--data.dataset", "npz", "--data.root", tmp_path / "data.npz")
    directory = tmp_path / "run"
    fit(directory, *data, "--data.batch_size", "16", "--seed_everything", "3")
    outcome = run("validate", "--run_dir", directory)
    assert outcome.code == 0, outcome
    assert "val top1: no labels\n" in outcome.out
    found = result(directory, "val")
    assert (found["top1"], found["top5"]) == (None, None)
    assert found["loss"] > 0


@pytest.mark.long
def test_top_5_of_four_classes_is_nowhere(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz", 8, 8)
    directory = tmp_path / "run"
    data = ("--data.dataset", "npz", "--data.root", tmp_path / "data.npz")
    fit(directory, *data, "--data.batch_size", "16", "--seed_everything", "3")
    assert "probe/val_top1" in rows(directory)[-1]
    assert not [name for row in rows(directory) for name in row if "top5" in name]
    for command, *options in (("validate",), ("linear", "--split", "val", "--seeds", "3", "4")):
        outcome = run(command, "--run_dir", directory, *options)
        assert "top1" in outcome.out, outcome
        assert "top5" not in outcome.out
    results = [json.loads(path.read_text()) for path in (directory / "results").iterdir()]
    assert [found["top5"] for found in results] == [None] * 3
    assert "top5" not in results_table(*read_runs([str(directory)])).head


def test_a_result_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    fields = {"protocol": "linear", "split": "test", "seed": 7, "checkpoint": tmp_path / "a.ckpt"}
    for top1 in (0.25, 0.5):
        path = write_result(tmp_path / "results", **fields, top1=top1)
    assert path == tmp_path / "results" / "linear-test-seed7.json"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert json.loads(path.read_text())["top1"] == 0.5
    assert json.loads(path.read_text())["checkpoint_sha256"] == sha256(tmp_path / "a.ckpt")


def test_a_rehearsal_of_an_evaluation_is_no_result(source: Path) -> None:
    before = files(source)
    last = source / "checkpoints" / "last.ckpt"
    outcome = run("test", *QUICK, "--ckpt_path", last, "--trainer.fast_dev_run", "true")
    assert outcome.code == 0, outcome
    assert files(source) == before
