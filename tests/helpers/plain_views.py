"""Random images, and options with which views neither normalise nor change them."""

from typing import Any

import torch
from torch import Tensor

PLAIN: dict[int, dict[str, tuple[float, ...]]] = {
    channels: {"mean": (0.0,) * channels, "std": (1.0,) * channels} for channels in (1, 3)
}
OFF: dict[str, Any] = {
    "scale": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0,
}  # fmt: skip


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
