"""Image folders: two views of each JPEG an epoch, against torchvision's `ImageFolder`, on a CPU.

    python benchmarks/folders.py           # 3 minutes on two idle cores

Some thousand generated photographs of 500 x 375 pixels in a temporary folder; whatever decodes has
two worker processes; all of them in turns within one run. Ours are the batches of the data module's
own loader and the views made of them, by one thread; torchvision's workers make the views.
Writes benchmarks/results/folders-cpu.md.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torchvision.transforms as T
from measuring import Timing, in_turns, machine, table, write
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from simclr_pl import ContrastiveDataModule
from simclr_pl.commands.pack.pack import pack

FILES, CLASSES, QUALITY = 2048, 8, 90
"""JPEGs in the folder, folders they lie in, and PIL's number for their quality."""

BATCH, BATCHES, WORKERS, TURNS = 64, 20, 2, 5
"""Images a batch, batches of an epoch that a turn goes through, processes that decode, turns."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Work = Callable[[], object]


def photographs(root: Path) -> None:
    """Windows of 500 x 375 in larger noise whose amplitude falls with frequency as photographs'."""
    generator = np.random.default_rng(0)
    down, across = np.fft.fftfreq(750)[:, None], np.fft.rfftfreq(1000)[None]
    amplitude = 1 / np.maximum(np.hypot(down, across), 1e-3) ** 1.2
    amplitude[0, 0] = 0

    def field() -> np.ndarray:
        phase = np.exp(2j * np.pi * generator.random(amplitude.shape))
        values = np.fft.irfft2(amplitude * phase, s=(750, 1000))
        return values / values.std()

    for number in range(FILES):
        if number % 64 == 0:
            light = field()
            planes = [120 + 45 * (light + 0.35 * field()) for _ in range(3)]
            scene = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        top, left = generator.integers(0, 375), generator.integers(0, 500)
        window = Image.fromarray(scene[top : top + 375, left : left + 500])
        window.save(folder / f"{number:05d}.jpg", quality=QUALITY)


class TwoViews:
    """A transform, twice."""

    def __init__(self, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(image), self.transform(image)


def torchvisions(root: Path, size: int) -> Work:
    kernel = size // 10 // 2 * 2 + 1
    transform = T.Compose(
        [
            T.RandomResizedCrop(size),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(kernel)], 0.5),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(str(root), TwoViews(transform))
    part = Subset(images, torch.randperm(FILES)[: BATCH * BATCHES].tolist())
    loader = DataLoader(
        part, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True
    )
    return lambda: sum(len(labels) for _, labels in loader)


def ours(dataset: str, root: Path, size: int) -> Work:
    data = ContrastiveDataModule(
        dataset, str(root), BATCH, size, mean=MEAN, std=STD, num_workers=WORKERS
    )
    data.setup()
    # (One epoch: behind it, nothing is read ahead that no turn would ask for.)
    data.trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1
    )
    loader = data.train_dataloader()

    def work() -> None:
        # The last batches of the epoch: a loader can be told to go on in the middle of one.
        loader.load_state_dict({"epoch": 0, "batches": len(loader) - BATCHES})
        for batch in loader:
            data.make_views(batch)

    return work


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the workers have the other core
    with tempfile.TemporaryDirectory() as scratch:
        folder, packed = Path(scratch) / "images", Path(scratch) / "packed"
        photographs(folder)
        kilobytes = sum(path.stat().st_size for path in folder.rglob("*.jpg")) / FILES / 1e3
        pack(str(folder), str(packed))
        rows = []
        for size in (224, 96):
            times = in_turns(
                {
                    "torchvision": torchvisions(folder, size),
                    "folder": ours("folder", folder, size),
                    "packed": ours("packed", packed, size),
                },
                torch.device("cpu"),
                TURNS,
            )
            rows.append(
                [f"{size} px", *(_rate(time, times["torchvision"]) for time in times.values())]
            )
    lines = [
        *table(
            ["views of", "torchvision's ImageFolder", "`folder`", "`packed`, short side 256"], rows
        ),
        "",
        f"Images a second, two views of each: medians of {TURNS} turns of {BATCH * BATCHES} images,"
        " in brackets the quartiles, then the median over torchvision's. "
        f"{FILES} JPEGs of 500 x 375 pixels, {kilobytes:.0f} kB each (quality {QUALITY}), from the "
        f"page cache; {WORKERS} workers for torchvision and `folder`, none for `packed`, on "
        f"{os.cpu_count()} cores.",
        "",
        f"`python benchmarks/folders.py`; {machine(torch.device('cpu'), 'torchvision', 'pillow')}.",
    ]
    write("folders-cpu", "Image folders (CPU)", lines)


def _rate(time: Timing, reference: Timing) -> str:
    median, low, high = (BATCH * BATCHES / value for value in (time.median, time.high, time.low))
    text = f"{median:.0f} ({low:.0f} to {high:.0f})"
    return text if time is reference else f"{text}, {reference.median / time.median:.1f} x"


if __name__ == "__main__":
    main()
