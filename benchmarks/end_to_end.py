"""Whole training steps: against their own bare step, and against lightly's published example.

    pip install -e ".[bench]"
    python benchmarks/end_to_end.py        # 10 minutes on two CPU cores

First `python -m simclr_pl bench` of shipped recipes: what data, views, probe, monitors and logging
leave of the speed of a step on views in memory. Then lightly's example for PyTorch Lightning
(examples/pytorch_lightning/simclr.py: ResNet-18 as for ImageNet, 32 px, batch 256, its transform,
loss and projection head) with 2 worker processes, in turns with the same model here; images of
CIFAR-10's size, made up. Writes benchmarks/results/end-to-end-cpu.md, or end-to-end-cuda.md.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import quantiles
from typing import Any

import lightning as L
import numpy as np
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from measuring import machine, table, write
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from simclr_pl import ContrastiveDataModule, SimCLR

RECIPES = ("fashion_mnist", "digits")
IMAGES, BATCH, WORKERS = 256 * 50, 256, 2
SKIP, STEPS, TURNS = 8, 40, 5
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Clock(L.Callback):
    """Images a second, from the end of step SKIP to that of the last."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (SKIP, SKIP + STEPS):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            if trainer.global_step == SKIP:
                self.start = now
            else:
                self.rate = STEPS * BATCH / (now - self.start)


class Pictures(Dataset[Any]):
    """Images in memory, handed out as torchvision's CIFAR-10 hands out its own."""

    def __init__(self, arrays: np.ndarray[Any, Any]) -> None:
        self.arrays, self.transform = arrays, None

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, place: int) -> Any:
        image = Image.fromarray(self.arrays[place])
        return (self.transform(image) if self.transform else image), 0


class Lightly(L.LightningModule):
    """The example's model: two passes, one a view."""

    def __init__(self) -> None:
        super().__init__()
        network = torchvision.models.resnet18()
        network.fc = nn.Identity()
        self.backbone = network
        self.projection_head = SimCLRProjectionHead(512, 2048, 2048)
        self.criterion = NTXentLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views, _, _ = batch
        first, second = (self.projection_head(self.backbone(view)) for view in views)
        loss: Tensor = self.criterion(first, second)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


def trainer(clock: Clock) -> L.Trainer:
    return L.Trainer(
        max_steps=SKIP + STEPS,
        callbacks=[clock],
        logger=False,
        devices=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def lightly(arrays: np.ndarray[Any, Any]) -> float:
    transform = SimCLRTransform(input_size=32)
    loader = DataLoader(
        LightlyDataset.from_torch_dataset(Pictures(arrays), transform=transform),
        batch_size=BATCH,
        collate_fn=MultiViewCollate(),
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )
    clock = Clock()
    trainer(clock).fit(Lightly(), loader)
    return clock.rate


def ours(file: Path, *, compiled: bool) -> float:
    model = SimCLR(
        stem="imagenet",
        projector_hidden=2048,
        projection_dim=2048,
        optimizer="sgd",
        momentum=0,
        weight_decay=0,
        learning_rate=0.06,
        lr_scaling="none",
        warmup_epochs=0,
        compiled=compiled,
    )
    data = ContrastiveDataModule("npz", str(file), batch_size=BATCH, compiled=compiled)
    clock = Clock()
    trainer(clock).fit(model, data)
    return clock.rate


def against_lightly() -> list[list[str]]:
    small = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    arrays = np.stack([np.asarray(Image.fromarray(s).resize((32, 32), 3)) for s in small])
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made-up.npz"
        np.savez(file, train_images=arrays)
        work = {
            "lightly's example, 2 workers": lambda: lightly(arrays),
            "ours, the same model": lambda: ours(file, compiled=False),
            "ours, compiled (`model.compiled`, `data.compiled`)": lambda: ours(file, compiled=True),
        }
        for _ in range(TURNS):
            for name, run in work.items():
                rates.setdefault(name, []).append(run())
    rows = []
    reference, *_ = rates.values()
    for name, values in rates.items():
        low, median, high = quantiles(values, n=4, method="inclusive")
        ratios = [rate / other for rate, other in zip(values, reference, strict=True)]
        ratio = f"{quantiles(ratios, n=4, method='inclusive')[1]:.2f} x"
        rows.append([name, f"{median:,.0f} ({low:,.0f} to {high:,.0f})", ratio])
    return rows


def against_bare(recipe: str, *options: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "simclr_pl", "bench"]
        config = ["--config", str(CONFIGS / f"{recipe}.yaml"), "--out", str(out)]
        subprocess.run([*command, *config, *options], check=True)
        found = json.loads(out.read_text(encoding="utf-8"))
    low, high = found["end_to_end_over_bare_quartiles"]
    share = found["share"]
    return [
        " ".join([f"`configs/{recipe}.yaml`", *options]),
        f"{1e3 * found['step_seconds'] / found['batch_size']:.2f} ms",
        f"{found['end_to_end_over_bare']:.3f} ({low:.3f} to {high:.3f})",
        *(f"{share[name]:.1%}" for name in ("views", "waiting_for_data", "loss", "optimizer")),
        f"{share['rest']:.1%}",
    ]


def main() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    header = ["recipe", "an image", "end to end / bare step", "views", "waiting for data"]
    header += ["loss", "optimiser", "the rest"]
    lines = [
        *table(header, [against_bare(recipe) for recipe in RECIPES]),
        "",
        "Shares are of a step end to end; the rest is probe, monitors, logging and Lightning. "
        "The bare step has loss and optimiser too; medians of turns, with quartiles.",
        "",
        *table(["what", "images/s", "of lightly's"], against_lightly()),
        "",
        f"ResNet-18 as for ImageNet, 32 px, batch {BATCH}, float32; {TURNS} turns of {STEPS} steps "
        f"behind {SKIP} that don't count.",
        "",
        f"`python benchmarks/end_to_end.py`; {machine(device, 'lightning', 'lightly')}.",
    ]
    write(f"end-to-end-{device.type}", f"Whole training steps ({device.type.upper()})", lines)


if __name__ == "__main__":
    main()
