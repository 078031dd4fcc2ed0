"""Runs that start from weights of a library or a file; resumed, on two ranks, from Python."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from commands import NARROW, QUICK, QUIET, finish, fit, run, start
from run_files import checkpoint
from torch import Tensor
from torchvision import models

from simclr_pl import ContrastiveDataModule, SimCLR, load_encoder
from simclr_pl.commandline.baselines import choose_encoder
from simclr_pl.commandline.target import DataChoice, find_pretrained
from simclr_pl.core.model.encoder import EncoderSpec, build_encoder

STILL = ("--model.learning_rate", "1e-30", "--model.weight_decay", "0")
"""Weights stay as they were at the first step."""

PRETRAINED = ("--model.encoder", "resnet18", "--model.encoder_args", "{pretrained: true}")


def trained(state: dict[str, Any], prefix: str = "encoder.") -> dict[str, Tensor]:
    """An encoder's weights in a state dict, without what batch norm counts."""
    below = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {k: v for k, v in below.items() if "running" not in k and "num_batches" not in k}


def check_start(run_dir: Path, theirs: dict[str, Tensor]) -> None:
    """Whether a run that stood still has a file's weights, of RGB images, for its gray ones."""
    found = trained(checkpoint(run_dir)["state_dict"])
    assert len(found) == len(trained(theirs, "")) - 2  # the classifier
    for name, value in found.items():
        if name != "conv1.weight":
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-25, msg=name)
    assert found["conv1.weight"].shape[1:] == (1, 3, 3)


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A state dict of `QUICK`'s network as timm makes it."""
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=7, **NARROW)
    torch.save(network.state_dict(), tmp_path / "narrow.pth")
    return tmp_path / "narrow.pth"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of a ResNet-18 where torchvision keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.manual_seed(4)
    theirs = models.resnet18().state_dict()
    (tmp_path / "home" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs, tmp_path / "home" / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    return theirs


def test_a_run_starts_from_a_file_and_says_so_in_a_line(narrow: Path, tmp_path: Path) -> None:
    said = fit(tmp_path / "run", "--init_from", narrow, *STILL).out
    check_start(tmp_path / "run", torch.load(narrow))
    (line,) = [line for line in said.splitlines() if "start weights" in line]
    assert f"start weights from {narrow}: 65 of the 65 tensors of the encoder start from it" in line
    assert "conv1.weight, [64, 3, 7, 7] there, is fitted to [64, 1, 3, 3]" in line
    assert "2 in the file are not used (fc.weight, fc.bias)" in line
    fit(tmp_path / "scratch", *STILL)
    one, other = (
        trained(checkpoint(tmp_path / name)["state_dict"], "projector.")
        for name in ("run", "scratch")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-25)  # drawn as without


def test_a_resume_needs_the_file_no_more(narrow: Path, tmp_path: Path) -> None:
    init = ("--init_from", narrow, "--run_dir", tmp_path / "run", "--resume")
    assert run("fit", *QUICK, *init).code == 0
    narrow.unlink()
    longer = run("fit", *QUICK, *init, "--trainer.max_epochs", "3")
    assert longer.code == 0, longer
    assert "start weights" not in longer.out
    state = checkpoint(tmp_path / "run")["state_dict"]
    assert int(state["encoder.bn1.num_batches_tracked"]) == 6


@pytest.mark.ddp
def test_every_rank_starts_from_the_file(narrow: Path, tmp_path: Path) -> None:
    two = ("--trainer.devices", "2", "--run_dir", tmp_path / "run", "--init_from", narrow, *STILL)
    outcome = finish(start("fit", *QUICK, *two))
    assert outcome.code == 0, outcome
    assert outcome.out.count("start weights") == 1
    check_start(tmp_path / "run", torch.load(narrow))


def test_another_network_s_weights_train_nothing(tmp_path: Path) -> None:
    torch.save(models.resnet18().state_dict(), tmp_path / "it.pth")
    options = (*QUICK, "--init_from", tmp_path / "it.pth", "--run_dir", tmp_path / "run")
    sentence = run("fit", *options).sentence
    assert "it.pth holds another network than resnet10t" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_pretrained_is_a_start_and_no_architecture(
    cached: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    one = (*PRETRAINED, *STILL, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    said = fit(path, *one).out
    assert said.count("start weights from torchvision:resnet18 (IMAGENET1K_V1): 100 of") == 1
    check_start(path, cached)
    shutil.rmtree(tmp_path / "home")  # and there is no internet
    spec = checkpoint(path)["simclr_pl"]["encoder"]
    assert spec["args"] == {}
    loaded = load_encoder(path / "checkpoints" / "last.ckpt").state_dict()
    assert torch.equal(loaded["layer1.0.conv1.weight"], cached["layer1.0.conv1.weight"])
    again = run("fit", *QUICK, *one, "--run_dir", path, "--resume")
    assert "nothing left to train" in again.out
    untrained = choose_encoder(find_pretrained(None, str(path), None, DataChoice()), "random")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = build_encoder(EncoderSpec("resnet18", 1, 8, "small", {})).module
    for name, value in fresh.state_dict().items():
        assert torch.equal(untrained.encoder.state_dict()[name], value)


def test_two_starts_are_a_sentence(cached: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(cached, tmp_path / "it.pth")
    init = ("--init_from", tmp_path / "it.pth", "--run_dir", tmp_path / "run")
    assert "are two starts" in run("fit", *QUICK, *PRETRAINED, *init).sentence
    wrong = (*PRETRAINED[:3], "{pretrained: it.pth}", "--run_dir", tmp_path / "run")
    assert "must be true or false" in run("fit", *QUICK, *wrong).sentence
    assert not (tmp_path / "run").exists()


def test_from_python_pretrained_weights_are_loaded_once(cached: dict[str, Tensor]) -> None:
    def weight() -> Tensor:
        return model.encoder.layer1[0].conv1.weight.detach().clone()

    data = ContrastiveDataModule("digits", batch_size=64)
    model = SimCLR("resnet18", {"pretrained": True}, learning_rate=0.01, warmup_epochs=0)
    still = L.Trainer(**QUIET, limit_val_batches=1)
    still.validate(model, data, verbose=False)
    assert torch.equal(weight(), cached["layer1.0.conv1.weight"])
    for _ in range(2):  # fitted again, it goes on from what it has learned
        before = weight()
        L.Trainer(**QUIET, max_steps=1, limit_val_batches=0).fit(model, data)
        difference = (weight() - before).abs().max()
        assert 0 < difference < 0.05
    assert not torch.equal(weight(), cached["layer1.0.conv1.weight"])
