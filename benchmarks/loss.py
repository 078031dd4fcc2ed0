"""NT-Xent: time and memory of forward and backward, against a dense loss and lightly's.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/loss.py              # 3 minutes on two CPU cores; on CUDA where there is

Time: in turns within one run, medians with quartiles. Memory: the peak above the inputs, each in a
process of its own. Writes benchmarks/results/loss-cpu.md, or loss-cuda.md.
"""

import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import MIB, in_a_fresh_process, in_turns, machine, table, write
from torch import Tensor

from simclr_pl import NTXentLoss
from simclr_pl.cluster.memory import PeakMemory

WIDTH, TEMPERATURE = 128, 0.5
TIMED = {256: 60, 1024: 30, 4096: 9}
"""Pairs, and how many turns."""
WEIGHED = (256, 4096, 16384, 65536)
DENSE_LIMIT = 4096
"""Pairs beyond which a dense matrix is not tried."""

Loss = Callable[[Tensor, Tensor], Tensor]


def dense(z1: Tensor, z2: Tensor) -> Tensor:
    """The plain form: the whole similarity matrix, its diagonal masked, and cross-entropy."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = z @ z.T / TEMPERATURE
    similarity.fill_diagonal_(float("-inf"))
    rows = len(z)
    return F.cross_entropy(similarity, torch.arange(rows, device=z.device).roll(rows // 2))


def losses() -> dict[str, Loss]:
    from lightly.loss import NTXentLoss as Lightlys

    return {
        "simclr_pl": NTXentLoss(TEMPERATURE),
        "dense cross-entropy": dense,
        "lightly": Lightlys(TEMPERATURE),
    }


def projections(pairs: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(pairs)
    shape = (2, pairs, WIDTH)
    return [z.to(device).requires_grad_() for z in torch.randn(shape, generator=generator)]


def step(loss: Loss, views: list[Tensor]) -> None:
    loss(*views).backward()
    for z in views:
        z.grad = None


def weigh(name: str, pairs: int, device: torch.device) -> int:
    """Bytes above the inputs at the peak of forward and backward."""
    loss = losses()[name]
    step(loss, projections(16, device))  # libraries load at first use
    views = projections(pairs, device)
    with PeakMemory(device) as memory:
        loss(*views).backward()
    return memory.bytes


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if len(sys.argv) == 3:
        print(json.dumps(weigh(sys.argv[1], int(sys.argv[2]), device)))
        return
    names = list(losses())
    time_rows, memory_rows = [], []
    for pairs, turns in TIMED.items():
        views = projections(pairs, device)
        work = {n: lambda f=f, v=views: step(f, v) for n, f in losses().items()}
        times = in_turns(work, device, turns)
        ratios = [times[name].median / times["simclr_pl"].median for name in names[1:]]
        time_rows.append(
            [f"{pairs:,}", *(str(times[name]) for name in names), *(f"{r:.2f}" for r in ratios)]
        )
    for pairs in WEIGHED:
        tried = names if pairs <= DENSE_LIMIT else names[:1]
        peak = {name: in_a_fresh_process(__file__, name, pairs) for name in tried}
        cells = [f"{peak[name] / MIB:,.1f} MiB" if name in peak else "" for name in names]
        ratio = f"1/{peak['lightly'] / peak['simclr_pl']:.0f}" if "lightly" in peak else ""
        memory_rows.append([f"{pairs:,}", *cells, ratio])
    kind = device.type
    lines = [
        f"Forward and backward, projections of width {WIDTH}, float32, temperature {TEMPERATURE}.",
        "",
        *table(["pairs", *names, *(f"{n} / simclr_pl" for n in names[1:])], time_rows),
        "",
        "Peak memory above the inputs:",
        "",
        *table(["pairs", *names, "simclr_pl / lightly"], memory_rows),
        "",
        f"`python benchmarks/loss.py`; {machine(device, 'lightly')}.",
    ]
    write(f"loss-{kind}", f"NT-Xent: time and memory ({kind.upper()})", lines)


if __name__ == "__main__":
    main()
