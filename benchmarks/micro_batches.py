"""Micro-batches: peak memory and time of a training step, against the whole batch at once.

    python benchmarks/micro_batches.py     # 15 minutes on two CPU cores; on CUDA where there is

A real `Trainer` takes two steps of ResNet-18 on random 32 px images, each size in a process of its
own. Memory is the peak above what the process held when the last batch was handed to the model
(network, data, optimiser, and the views of a whole batch); time is from then on. Writes
benchmarks/results/micro-batches-cpu.md, or -cuda.md.
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from measuring import MIB, in_a_fresh_process, machine, table, write

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.cluster.memory import PeakMemory
from simclr_pl.commands.bench.ceilings import synchronise

MICRO = 128
WHOLE = (128, 256, 512, 1024)
BATCHES = (*WHOLE, 2048)
STEPS = 2


class LastStep(L.Callback):
    """Watches the last step, from the batch that the model is given to the moved weights."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.device = trainer.strategy.root_device
        if trainer.global_step == STEPS - 1:
            self.memory = PeakMemory(self.device).__enter__()
            synchronise(self.device)
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == STEPS:
            synchronise(self.device)
            self.seconds = time.perf_counter() - self.start
            self.memory.__exit__()


def measure(batch: int, micro: int | None, device: str) -> dict[str, float]:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pixels = np.random.default_rng(0).integers(0, 256, (batch + 2, 32, 32, 3), dtype=np.uint8)
    watch = LastStep()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, train_images=pixels, val_images=pixels[:2])
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            max_steps=STEPS,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch],
        )
        model = SimCLR("resnet18", optimizer="sgd", micro_batch_size=micro)
        trainer.fit(model, ContrastiveDataModule("npz", str(path), batch, blur=0.0))
    return {"bytes": watch.memory.bytes, "seconds": watch.seconds}


def cells(measured: dict[str, float] | None) -> list[str]:
    if measured is None:
        return ["", ""]
    return [f"{measured['bytes'] / MIB:,.0f} MiB", f"{measured['seconds']:.3g} s"]


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if len(sys.argv) == 3:
        print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]) or None, device.type)))
        return
    rows = []
    for batch in BATCHES:
        whole = in_a_fresh_process(__file__, batch, 0) if batch in WHOLE else None
        parts = in_a_fresh_process(__file__, batch, MICRO)
        ratio = f"{parts['seconds'] / whole['seconds']:.2f}" if whole else ""
        rows.append([f"{batch:,}", *cells(whole), *cells(parts), ratio])
    header = ["global batch", "whole: memory", "step", f"micro-batches of {MICRO}: memory"]
    header += ["step", "step / step"]
    lines = [
        "A training step of ResNet-18 with a 3x3 stem, 32 px, float32, SGD: forward, backward and "
        "update. Memory is the peak above what was held before the step.",
        "",
        *table(header, rows),
        "",
        f"`python benchmarks/micro_batches.py`; {machine(device, 'lightning')}.",
    ]
    write(f"micro-batches-{device.type}", f"Micro-batches ({device.type.upper()})", lines)


if __name__ == "__main__":
    main()
