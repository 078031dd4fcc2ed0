"""A data set of your own: a length, and items of a uint8 image [C, H, W] and its label."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset


class Inverted(Dataset[tuple[Tensor, int]]):
    """Digits, dark on white."""

    def __init__(self, limit: int) -> None:
        pixels, self.targets = load_digits().images[:limit], load_digits().target[:limit]
        self.images = 255 - torch.from_numpy(pixels[:, None] * 15).byte()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.images[place], int(self.targets[place])
