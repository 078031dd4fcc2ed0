"""Weights where timm would have put them after a download."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import save_file
from torch import nn


def publish(network: nn.Module, name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a network's weights into a cache of Hugging Face's, and lets nobody ask the internet.

    Args:
        network: of timm.
        name: of its weights, with the tag.
        cache: a folder.
        monkeypatch: of the test.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = cache / f"models--timm--{name}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(network.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
