"""Baselines in the encoder's place: a library's weights, a file's, another run's."""

from pathlib import Path

import pytest
import timm
import torch
from commands import NARROW, fit, run
from published import publish
from run_files import result
from torch import Tensor, nn
from torchvision import models

from simclr_pl import UserError, load_encoder
from simclr_pl.commandline.baselines import choose_encoder
from simclr_pl.commandline.target import DataChoice, Pretrained, find_pretrained
from simclr_pl.run.results import sha256

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a small stem, to which results are added."""
    directory = tmp_path_factory.mktemp("source") / "run"
    fit(directory)
    return directory


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of its network as timm makes it: for RGB, with its own stem and a classifier."""
    path = tmp_path_factory.mktemp("weights") / "narrow v1.pth"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save(timm.create_model("resnet10t", **NARROW).state_dict(), path)
    return path


def of(path: Path) -> Pretrained:
    return find_pretrained(None, str(path), None, DataChoice())


def test_compare_has_a_column_of_a_file_s_weights(source: Path, weights: Path) -> None:
    plain = run("compare", "--run_dir", source, "--draws", 2)
    assert plain.code == 0, plain
    columns = result(source / "results" / "logistic-val-seed0.json")["columns"]
    outcome = run("compare", "--run_dir", source, "--draws", 2, "--baseline", weights)
    assert outcome.code == 0, outcome
    found = result(source / "results" / "logistic-val-seed0.json")
    label = f"weights-narrow-v1-{sha256(weights)[:8]}"
    assert list(found["columns"]) == ["raw pixels", "untrained", label, "pretrained"]
    assert {name: found["columns"][name] for name in columns} == columns  # as without it
    assert found["baseline_weights"][label].startswith(f"{weights} (sha256 {sha256(weights)})")
    lines = outcome.out.splitlines()
    assert any(label in line and "pretrained" in line for line in lines[2:3])
    assert any(line.startswith(f"{label} is {weights}") for line in lines)
    assert any(f"pretrained minus {label} is" in line for line in lines)


@pytest.mark.parametrize("command", ["linear", "knn"])
def test_a_score_of_a_file_s_weights_says_whose_it_is(
    command: str, source: Path, weights: Path
) -> None:
    fast = ("--epochs", "2", "--learning_rates", "0.1") if command == "linear" else ()
    outcome = run(command, "--run_dir", source, "--baseline", weights, *fast)
    assert outcome.code == 0, outcome
    name = f"{command}-weights-narrow-v1-{sha256(weights)[:8]}"
    found = result(source / "results" / f"{name}-test-seed0.json")
    assert (found["protocol"], found["baseline"]) == (name, str(weights))
    assert (found["epoch"], sha256(weights) in found["baseline_weights"]) == (0, True)
    assert f"baseline: {weights} (sha256 " in outcome.out


def test_published_weights_stay_behind_their_own_stem_with_images_enlarged(
    source: Path, weights: Path
) -> None:
    chosen = choose_encoder(of(source), str(weights))
    theirs = torch.load(weights)
    network = timm.create_model("resnet10t", num_classes=0, **NARROW)
    network.load_state_dict({k: v for k, v in theirs.items() if not k.startswith("fc.")})
    images = torch.rand(3, 1, 8, 8)
    larger = nn.functional.interpolate(images, scale_factor=4, mode="bilinear")
    with torch.no_grad():
        expected = network.eval()(larger.expand(-1, 3, -1, -1))
        torch.testing.assert_close(chosen.encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert chosen.weights
    assert chosen.weights.endswith("behind its own stem, images enlarged 4 times")


def test_weights_behind_the_run_s_own_stem_see_images_as_they_are(
    source: Path, tmp_path: Path
) -> None:
    other = load_encoder(source / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        other.layer1[0].conv1.weight.mul_(2)
    torch.save({"model": other.state_dict()}, tmp_path / "it.pth")
    chosen = choose_encoder(of(source), str(tmp_path / "it.pth"))
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(chosen.encoder(images), other(images))
    assert chosen.weights == f"{tmp_path / 'it.pth'} (sha256 {sha256(tmp_path / 'it.pth')})"


def test_another_run_s_encoder_is_a_baseline(source: Path, weights: Path, tmp_path: Path) -> None:
    fit(tmp_path / "other", "--model.stem", "medium", "--seed_everything", "1")
    last = tmp_path / "other" / "checkpoints" / "last.ckpt"
    chosen = choose_encoder(of(source), str(last))
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(chosen.encoder(images), load_encoder(last)(images))
    assert chosen.label == f"weights-last-{sha256(last)[:8]}"
    medium = choose_encoder(of(tmp_path / "other"), str(weights))
    assert str(medium.weights).endswith("images enlarged 2 times")


@pytest.mark.long
def test_imagenet_is_the_library_s_weights_of_the_run_s_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    network = ("--model.encoder", "resnet18", "--model.encoder_args", "null")
    fit(tmp_path / "run", *network, *shorter)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(
        models.resnet18().state_dict(), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    )
    outcome = run("knn", "--run_dir", tmp_path / "run", "--baseline", "imagenet")
    assert outcome.code == 0, outcome
    found = result(tmp_path / "run" / "results" / "knn-imagenet-test-seed0.json")
    assert found["baseline"] == "imagenet"
    assert found["baseline_weights"].startswith("torchvision:resnet18 (IMAGENET1K_V1)")


def lacking(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != "layer1.0.bn1.bias"}


def test_what_is_no_baseline_is_a_sentence(
    source: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(lacking(torch.load(weights)), tmp_path / "it.pth")
    publish(timm.create_model("resnet10t"), "resnet10t.c3_in1k", tmp_path, monkeypatch)
    sentences = {
        "nix": "baseline is 'nix', but must be pixels, random, imagenet, a file",
        str(tmp_path / "it.pth"): "no baseline for resnet10t.*layer1.0.bn1.bias is not there",
        "imagenet": "weights of timm:resnet10t cannot be used .*no model.encoder_args",
    }
    for baseline, sentence in sentences.items():
        with pytest.raises(UserError, match=sentence):
            choose_encoder(of(source), baseline)
    pixels = run("compare", "--run_dir", source, "--baseline", "pixels").sentence
    assert "a column of compare in any case" in pixels
