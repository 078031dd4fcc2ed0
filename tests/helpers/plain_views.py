"""Options with which views neither normalise nor change images; torchvision's colours."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl.core.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION

PLAIN: dict[int, dict[str, tuple[float, ...]]] = {
    channels: {"mean": (0.0,) * channels, "std": (1.0,) * channels} for channels in (1, 3)
}
OFF: dict[str, Any] = {
    "scale": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0,
}  # fmt: skip
ADJUST: dict[int, Callable[[Tensor, float], Tensor]] = {
    BRIGHTNESS: TF.adjust_brightness,
    CONTRAST: TF.adjust_contrast,
    SATURATION: TF.adjust_saturation,
    HUE: TF.adjust_hue,
}
