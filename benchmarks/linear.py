"""Linear evaluation: how long the whole protocol takes on features of 50,000 images.

    python benchmarks/linear.py            # 5 minutes on two CPU cores; on CUDA where there is

The protocol of the command `linear`: 40 heads trained on nine tenths of the rows, one chosen on the
tenth left out, trained again on all of them, and 10,000 rows scored. Features are random, with
variances that fall a thousandfold from the first direction to the last: what they hold doesn't
change the work. Writes benchmarks/results/linear-cpu.md, or linear-cuda.md.
"""

import time

import torch
from measuring import MIB, machine, table, write

from simclr_pl.cluster.memory import PeakMemory
from simclr_pl.commands.bench.ceilings import synchronise
from simclr_pl.protocols.features import accelerator
from simclr_pl.protocols.linear import Settings, fit_linear
from simclr_pl.protocols.scoring import Rows

TRAIN, SCORED = 50_000, 10_000


def rows(count: int, width: int, classes: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    features = torch.randn(count, width, generator=generator)
    features += torch.eye(classes, width)[labels]
    return Rows(features * torch.logspace(0, -1.5, width), labels)


def measure(width: int, classes: int, device: torch.device) -> list[str]:
    train, scored = (
        rows(count, width, classes, seed).to(device) for seed, count in ((0, TRAIN), (1, SCORED))
    )
    with PeakMemory(device) as memory:
        synchronise(device)
        start = time.perf_counter()
        fit_linear(lambda _: train.features, train.labels, classes, Settings()).score(scored)
        synchronise(device)
        seconds = time.perf_counter() - start
    return [f"{TRAIN:,} x {width}", str(classes), f"{seconds:.0f} s", f"{memory.bytes / MIB:.0f}"]


def main() -> None:
    device = accelerator()
    found = [measure(width, classes, device) for width, classes in ((512, 10), (512, 100))]
    lines = [
        *table(["features", "classes", "whole protocol, 40 heads", "peak, MiB"], found),
        "",
        "Peak memory is above the features themselves, which are there before.",
        "",
        f"`python benchmarks/linear.py`; {machine(device)}.",
    ]
    write(f"linear-{device.type}", "Linear evaluation", lines)


if __name__ == "__main__":
    main()
