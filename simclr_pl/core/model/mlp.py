"""A fully connected encoder, on flattened images."""

from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with batch norm and ReLU: tutorials' encoder for very small images.

    Args:
        channels: image channels C.
        image_size: image side S in pixels.
        widths: outputs of each layer; the last one is the feature width D.
    """

    def __init__(
        self, channels: int, image_size: int, widths: tuple[int, ...] = (512, 256)
    ) -> None:
        super().__init__()
        layers = [
            nn.Sequential(nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in pairwise([channels * image_size**2, *widths])
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, D]` of images `[B, C, S, S]`."""
        features: Tensor = self.layers(images.flatten(1))
        return features
