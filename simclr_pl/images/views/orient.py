"""Flips, quarter turns and shifts of square views: pixels move, and none is resampled."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reoriented(planes: Tensor, vertical: Tensor, quarters: Tensor) -> Tensor:
    """Mirrors views top and bottom, and then turns them by quarters, counterclockwise.

    Args:
        planes: `[C, B, S, S]`.
        vertical: `bool [B]`, mirror.
        quarters: `[B]`, how many quarter turns, 0 to 3.
    """
    vertical, quarters = vertical[:, None, None], quarters[:, None, None]
    # A quarter turn is a transposition, mirrored; accelerators would wait to learn how many.
    planes = torch.where(vertical, planes.flip(-2), planes)
    planes = torch.where(quarters % 2 == 1, planes.transpose(-2, -1), planes)
    planes = torch.where((quarters == 1) | (quarters == 2), planes.flip(-2), planes)
    return torch.where(quarters >= 2, planes.flip(-1), planes)


def shifted(planes: Tensor, padding: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """A window of each view, surrounded by black, as torchvision's `RandomCrop(S, padding)` has it.

    Args:
        planes: `[C, B, S, S]`.
        padding: black pixels on each side.
        top: `[B]`, first line of the window in the padded view, 0 to twice the padding.
        left: `[B]`, its first column.
        flip: `bool [B]`, mirror the window left and right.
    """
    size = planes.shape[-1]
    place = torch.arange(size, device=planes.device)
    rows = top.long()[:, None] + place
    columns = left.long()[:, None] + torch.where(flip[:, None], size - 1 - place, place)
    wide = F.pad(planes, (padding,) * 4)
    lines = wide.gather(2, rows[None, ..., None].expand(len(planes), -1, -1, wide.shape[-1]))
    return lines.gather(3, columns[None, :, None].expand(planes.shape))
