"""The colours of a view as one expression, for the compiler to make one kernel of.

What `color` does, by other means: there samples are sorted so that hue is computed where it is
wanted; here everything is computed of all samples and the unwanted dropped. As single operations
that would be four times the work. Compiled it is one pass over the image, which asks for nothing
that the host would have to wait for.
"""

import torch
from torch import Tensor

from simclr_pl.core.views.color import HUE, Jitter, luma, shares


def recoloured(planes: Tensor, how: Jitter, gray: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Jitters, drops colour, and normalises.

    Args:
        planes: `float [C, B, S, S]` in [0, 1], any C.
        how: of each sample.
        gray: `bool [B]`, drop colour.
        mean: of each channel, `[C, 1, 1]`.
        std: of each channel, likewise.

    Returns:
        `float [B, C, S, S]`.
    """
    count, colours = planes.shape[0], list(planes.flatten(2))
    own, to_mean, to_gray = shares(how, count)[..., None]
    turns, jittered = how.factor[:, HUE, None], how.on[:, None]
    own = torch.where(jittered, own, 1.0)
    to_mean, to_gray = (torch.where(jittered, share, 0.0) for share in (to_mean, to_gray))
    for step in range(4):
        if count in (1, 3):
            gray_now = luma(colours)
            target = gray_now * to_gray[step] + gray_now.mean(-1, keepdim=True) * to_mean[step]
            new = [(colour * own[step] + target).clamp(0, 1) for colour in colours]
        else:
            bands = zip(colours, own[step], to_mean[step], strict=True)
            new = [(c * a + c.mean(-1, keepdim=True) * b).clamp(0, 1) for c, a, b in bands]
        if count == 3:
            is_hue = jittered & (how.order[:, step, None] == HUE)
            new = _where(is_hue, _hue_shifted(colours, turns), new)
        colours = new
    colours = _where(gray[:, None], [luma(colours)] * count, colours)
    normal = torch.stack([(c - mean[i, 0]) / std[i, 0] for i, c in enumerate(colours)], 1)
    return normal.view(planes.transpose(0, 1).shape)


def _where(on: Tensor, these: list[Tensor], those: list[Tensor]) -> list[Tensor]:
    return [torch.where(on, a, b) for a, b in zip(these, those, strict=True)]


def _hue_shifted(colours: list[Tensor], turns: Tensor) -> list[Tensor]:
    """As `color.shift_hue` explains it, with comparisons, which cost nothing here."""
    red, green, blue = colours
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - low
    no_blue, no_red = blue == low, red == low
    rise = torch.where(no_blue, green - red, torch.where(no_red, blue - green, red - blue))
    # (Of numbers alone `where` makes torch's default, which is float64 in steps under 64-true.)
    start = torch.where(no_blue, 7.0, torch.where(no_red, 9.0, 11.0)).to(chroma.dtype)
    hue = (rise / chroma.clamp(min=torch.finfo(chroma.dtype).tiny) + start) / 6 + turns
    hue = (hue - hue.floor()) * 6
    red, green, blue = (((hue - m).abs() - 1).clamp(0, 1) * chroma for m in (3, 2, 4))
    return [low + red, high - green, high - blue]
