"""Files of weights, and libraries' own: what is read, what is fetched, and sentences."""

import argparse
import urllib.error
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from published import publish
from torchvision import models

from simclr_pl import UserError
from simclr_pl.protocols.weight_files import read_weights

SPOILT: dict[str, tuple[Any, str]] = {
    "it.pth": (b"", "cannot be read: it is truncated"),
    "text.pth": (b"weights", "cannot be read: it is truncated"),
    "short.safetensors": (b"\x08\0\0\0\0\0\0\0{}", "cannot be read: it is truncated"),
    "objects.pth": ({"args": argparse.Namespace(lr=1)}, "Python objects beside its tensors"),
    "numbers.pth": ({"epoch": 3, "lr": 0.1}, "holds no weights.*its keys are epoch, lr"),
    "tensor.pth": (torch.zeros(3), "holds no weights.*it has no keys"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_file_without_weights_is_a_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = SPOILT[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(UserError, match=sentence) as raised:
        read_weights(str(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)


def test_a_flipped_bit_and_a_cut_file_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "it.pth"
    torch.save({"weight": torch.arange(4096.0)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    with pytest.raises(UserError, match="is damaged"):
        read_weights(str(path))
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(str(path))


def test_tensors_beside_others_are_kept_alone(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2), "version": 3}, "epoch": 1}, tmp_path / "it.pth")
    found = read_weights(str(tmp_path / "it.pth"))
    assert found.ours is None
    assert {key: value.tolist() for key, value in found.tensors.items()} == {"a": [1, 1]}


# Of libraries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("torchvision:resnet81", "torchvision knows no 'resnet81': did you mean resnet18"),
        ("torchvision:resnet18.V3", "knows no 'V3': did you mean IMAGENET1K_V1"),
        ("timm:resnet10x", "timm knows no 'resnet10x': did you mean resnet10t"),
        ("timm:resnet10t.nix", "no pretrained weights of resnet10t.nix, but of c3_in1k"),
        ("timm:darknet17", "no pretrained weights of darknet17"),
    ],
)
def test_a_name_that_is_not_known_is_a_sentence(source: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_weights(source)


def test_without_internet_a_sentence_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", nobody)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    addresses = {
        "torchvision:resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        "timm:resnet10t": "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/",
    }
    for source, address in addresses.items():
        with pytest.raises(UserError, match=f"weights of {source} could not be fetched") as raised:
            read_weights(source)
        assert f"fetch {address}" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_torchvision_s_weights_come_out_of_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    theirs = models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    for source in ("torchvision:resnet18", "torchvision:resnet18.IMAGENET1K_V1"):
        found = read_weights(source)
        assert found.name == "torchvision:resnet18 (IMAGENET1K_V1)"
        assert all(torch.equal(found.tensors[key], value) for key, value in theirs.items())


def test_timm_s_weights_come_out_of_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("resnet10t")
    publish(network, "resnet10t.c3_in1k", tmp_path, monkeypatch)
    state = torch.get_rng_state()
    found = read_weights("timm:resnet10t")
    assert torch.equal(torch.get_rng_state(), state)
    assert found.name == "timm:resnet10t (c3_in1k)"
    assert all(
        torch.equal(found.tensors[key], value) for key, value in network.state_dict().items()
    )
