"""An encoder of one's own: any module from images [B, C, S, S] to features [B, D]."""

from torch import nn


class Net(nn.Sequential):
    def __init__(self, channels: int, width: int = 64):
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
