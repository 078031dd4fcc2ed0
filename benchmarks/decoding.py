"""What it changes that a large JPEG is decoded smaller: crops against those of the whole image.

    python benchmarks/decoding.py          # 20 seconds

The two photographs that come with scikit-learn (640 x 427 pixels), training's boxes of many
epochs; the reference is torchvision's `resized_crop` of the whole image, with antialiasing.
Writes benchmarks/results/decoding.md.
"""

import importlib.metadata
from pathlib import Path

import sklearn.datasets
import torch
from measuring import table, write
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from simclr_pl import SimCLRViews
from simclr_pl.images.files.decode import EncodedImage

EPOCHS = 400
"""Of two boxes each, an image."""


def differences(path: Path, size: int) -> list[Tensor]:
    """Mean over pixels, in levels of 255, of each crop that was cut from a smaller decode."""
    views, index = SimCLRViews(size), torch.tensor([0])
    with Image.open(path) as image:
        whole = image.convert("RGB")
    found = []
    for epoch in range(EPOCHS):
        how = [views.draw(index, epoch, view) for view in (0, 1)]
        boxes = torch.cat([views.boxes(h, whole.height, whole.width) for h in how]).tolist()
        file = EncodedImage(path)
        if file.scale(boxes, size) == 1:
            continue
        crops = torch.empty(2, 3, size, size, dtype=torch.uint8)
        file.crops([boxes], size, crops)
        for box, crop in zip(boxes, crops, strict=True):
            want = TF.pil_to_tensor(TF.resized_crop(whole, *box, [size, size], antialias=True))
            found.append((crop.float() - want.float()).abs().mean())
    return found


def main() -> None:
    folder = Path(sklearn.datasets.__file__).parent / "images"
    rows = []
    for name in ("china.jpg", "flower.jpg"):
        for size in (24, 32, 48, 64, 96):
            found = torch.stack(differences(folder / name, size))
            far = found.quantile(torch.tensor([0.95, 1.0])).tolist()
            share = len(found) / (2 * EPOCHS)
            numbers = [f"{number:.2f}" for number in (found.mean().item(), *far)]
            rows.append([name, f"{size} px", f"{share:.0%}", *numbers])
    lines = [
        *table(["photograph", "views", "decoded smaller", "mean", "95 %", "largest"], rows),
        "",
        f"Of {2 * EPOCHS} crops each: the share that was cut from a smaller decode, and how far "
        "those are from the crop of the whole image: mean over pixels, in levels of 255.",
        "",
        "`python benchmarks/decoding.py`; "
        + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("pillow", "torchvision"))
        + ".",
    ]
    write("decoding", "JPEGs decoded smaller", lines)


if __name__ == "__main__":
    main()
