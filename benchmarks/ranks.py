"""Ranks: how images/s scale, what they send each other in a step, and what DDP's flags are worth.

    python benchmarks/ranks.py     # 5 minutes on two CPU cores

The bare step of configs/fashion_mnist.yaml (network, loss, gradients, SGD; views in memory), by 1,
2 and 4 processes with one thread each, in a gloo group, at the same global batch. All are started
once and then measured in turns. Collectives are counted where torch dispatches them, and must be
what formulae say. Writes benchmarks/results/ranks-cpu.md.
"""

import multiprocessing
import os
import tempfile
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import yaml
from measuring import Timing, in_turns, machine, table, write
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_pl import NTXentLoss
from simclr_pl.core.distributed import rank_and_world, shard
from simclr_pl.core.model.batch_norm import globalise_batch_norm
from simclr_pl.core.model.encoder import EncoderSpec, build_encoder
from simclr_pl.core.model.projector import build_projector

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fashion_mnist.yaml"
CPU, CORES = torch.device("cpu"), len(os.sched_getaffinity(0))
SIDE, CHANNELS, WIDTH = 28, 1, 128  # of the images; of the projections
BATCH, WORLDS = 256, (1, 2, 4)
WARM_UP, STEPS, TURNS = 3, 2, 16

FLAGS: dict[str, dict[str, Any]] = {
    "none": {},
    "static_graph": {"static_graph": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "bucket_cap_mb=1": {"bucket_cap_mb": 1},
    "bucket_cap_mb=100": {"bucket_cap_mb": 100},
    "bf16_compress_hook": {},
    "batch norm a rank": {},  # another recipe: what model.global_batch_norm costs
}


class Call(NamedTuple):
    """A collective: what it is for, torch's name of it, and the bytes that a rank hands over."""

    purpose: str
    name: str
    bytes: int


class Network(nn.Module):
    """Encoder, projector and loss of the recipe: views `[2B, C, S, S]` to the loss."""

    def __init__(self) -> None:
        super().__init__()
        recipe = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]
        args = (recipe["encoder"], CHANNELS, SIDE, recipe["stem"], recipe["encoder_args"])
        encoder = build_encoder(EncoderSpec(*args))
        self.encoder = encoder.module.to(memory_format=torch.channels_last)
        self.projector = build_projector(encoder.width, 2, None, WIDTH)
        self.loss = NTXentLoss(recipe["temperature"])

    def forward(self, views: Tensor) -> Tensor:
        loss: Tensor = self.loss(*self.projector(self.encoder(views)).chunk(2))
        return loss

    def channels(self) -> list[int]:
        """Of each layer of batch norm."""
        return [m.num_features for m in self.modules() if isinstance(m, _BatchNorm)]


class Training:
    """The network under DDP with one of the flags, and its steps."""

    def __init__(self, flag: str) -> None:
        self.network = Network()
        self.rank, self.world = rank_and_world()
        self.module: nn.Module = self.network
        if self.world > 1:
            if flag != "batch norm a rank":
                globalise_batch_norm(self.network, CPU)
            self.module = DistributedDataParallel(self.network, **FLAGS[flag])
            if flag == "bf16_compress_hook":
                self.module.register_comm_hook(None, bf16_compress_hook)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.9)
        self.steps(BATCH, WARM_UP)  # DDP makes its buckets anew behind the first step

    def steps(self, batch: int, steps: int = STEPS) -> None:
        rows = shard(batch, self.rank, self.world)
        views = torch.rand(2 * (rows.stop - rows.start), CHANNELS, SIDE, SIDE)
        views = views.contiguous(memory_format=torch.channels_last)
        for _ in range(steps):
            self.module(views).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def count(self) -> list[Call]:
        """The collectives of a step, in their order."""
        with Counting(max(self.network.channels())) as counting:
            self.steps(BATCH, 1)
        return counting.calls

    def replay(self, calls: list[Call]) -> None:
        """Collectives like those of some steps, with nothing in between."""
        for call in calls * STEPS:
            x = torch.zeros(call.bytes // 4)
            if call.name == "allreduce":
                dist.all_reduce(x)
            elif call.name == "broadcast":
                dist.broadcast(x, 0)
            else:
                dist.all_gather_into_tensor(x.new_empty(self.world * len(x)), x)


class Counting(TorchDispatchMode):
    """Notes the collectives of this package, and DDP's, of layers of `widest` channels at most."""

    def __init__(self, widest: int) -> None:
        super().__init__()
        self.widest, self.calls = widest, list[Call]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            # An all-gather's arguments are what is gathered into, and what this rank gives.
            x = args[1] if "allgather" in func.__name__ else args[0][0]
            name = func.__name__.split(".")[0].strip("_")
            self.calls.append(Call(self.purpose(name, x), name, x.nbytes))
        return func(*args, **(kwargs or {}))

    def purpose(self, name: str, x: Tensor) -> str:
        if name == "broadcast":
            return "batch norm's buffers"
        if name == "allreduce":  # a bucket of gradients is larger than what a layer sums
            return "gradients" if x.numel() > 2 * self.widest else "batch norm's gradients"
        if x.dtype == torch.int64:
            return "numbers of rows"
        if x.dim() == 1:
            return "shares"
        return "projections" if len(x) > 1 else "batch norm's statistics"


def serve(rank: int, world: int, store: str, pipe: Connection) -> None:
    """A rank: does what it is told, until it is told nothing more."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    trainings = {flag: Training(flag) for flag in FLAGS if flag == "none" or world == 2}
    while order := pipe.recv():
        flag, what, *args = order
        pipe.send(getattr(trainings[flag], what)(*args))
    if world > 1:
        dist.destroy_process_group()


class Team:
    """Ranks that wait for orders; waiting takes no time of a core."""

    def __init__(self, world: int, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        store = (Path(folder) / f"store{world}").as_uri()
        self.pipes: list[Connection] = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(rank, world, store, theirs), daemon=True).start()
            self.pipes.append(ours)

    def __call__(self, *order: Any) -> Any:
        """Gives an order to all ranks; returns the first one's answer."""
        for pipe in self.pipes:
            pipe.send(order)
        return [pipe.recv() for pipe in self.pipes if order][:1]


def sent(calls: list[Call], world: int) -> list[list[str]]:
    """Rows of the table of bytes; what was counted has to be what formulae say.

    Round a ring of W ranks, each sends what it has W - 1 times in an all-gather, and 2(W - 1)/W
    times in an all-reduce.
    """
    network = Network()
    layers, channels = len(network.channels()), sum(network.channels())
    weights = sum(p.numel() for p in network.parameters() if p.requires_grad)
    rows, gather, reduce = 2 * BATCH // world, world - 1, 2 * (world - 1) / world
    lines, total = [], 0.0
    for purpose, formula, size, times in (
        ("gradients", "4 x weights", 4 * weights, reduce),
        ("projections", "4 x 2B/W x P", 4 * rows * WIDTH, gather),
        ("shares", "4 x 2B/W", 4 * rows, gather),
        ("numbers of rows", "8", 8, gather),
        ("batch norm's statistics", "4 x (2C + 1 a layer)", 4 * (2 * channels + layers), gather),
        ("batch norm's gradients", "4 x 2C", 4 * 2 * channels, reduce),
        ("batch norm's buffers", "8 x (C + 1 a layer)", 8 * (channels + layers), 1),
    ):
        of_it = [call for call in calls if call.purpose == purpose]
        if sum(call.bytes for call in of_it) != size:
            raise SystemExit(f"not {size} bytes for {purpose}: {of_it}")
        total += times * size
        about = [str(world), purpose, of_it[0].name, str(len(of_it)), formula]
        lines.append([*about, f"{size:,}", f"{times * size:,.0f}"])
    return [*lines, [str(world), "together", "", str(len(calls)), "", "", f"{total:,.0f}"]]


def scaling(found: dict[str, Timing], world: int) -> list[str]:
    """A row of the table of images/s."""
    one, step = found["steps 1"].median, found[f"steps {world}"]
    alone = found[f"alone {world}"].median if world > 1 else one
    between = found[f"collectives {world}"].median if world > 1 else 0.0
    predicted = max(1, world / CORES) * alone + between
    return [
        *(str(world), f"{BATCH / step.median:,.0f}", str(step)),
        *(f"{1e3 * alone:.0f} ms", f"{1e3 * between:.0f} ms"),
        *(f"{one / predicted:.2f}", f"{one / step.median:.2f}", f"{2 * BATCH - 2}"),
    ]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        teams = {world: Team(world, folder) for world in WORLDS}
        counted, work = [], {"steps 1": partial(teams[1], "none", "steps", BATCH)}
        for world in WORLDS[1:]:
            (calls,) = teams[world]("none", "count")
            counted += sent(calls, world)
            work[f"steps {world}"] = partial(teams[world], "none", "steps", BATCH)
            work[f"alone {world}"] = partial(teams[1], "none", "steps", BATCH // world)
            work[f"collectives {world}"] = partial(teams[world], "none", "replay", calls)
        work |= {flag: partial(teams[2], flag, "steps", BATCH) for flag in [*FLAGS][1:]}
        found = {
            name: Timing(*(seconds / STEPS for seconds in timing))
            for name, timing in in_turns(work, CPU, TURNS).items()
        }
        for team in teams.values():
            team()  # nothing more
    found["none"] = plain = found["steps 2"]
    lines = [
        f"The bare step of {CONFIG.name} ({SIDE} px, float32) at a global batch B of {BATCH}: W "
        f"processes of one thread each, in a gloo group, on {CORES} cores. Medians over {TURNS} "
        f"turns of {STEPS} steps, with quartiles. Ranks wait for the slowest of them, so that what "
        "else the machine does counts for more than its share (load average, this included: "
        f"{os.getloadavg()[1]:.1f}).",
        "",
        "Predicted is what one process takes for B/W images (which W processes on fewer cores take "
        "so many times longer for) and the step's collectives with nothing in between. What is not "
        "in it is that batch norm of several ranks, on CPUs, is slower than torch's own (below).",
        "",
        *table(
            [*("W", "images/s", "step", "one process, B/W images", "collectives alone"),
             *("speed-up predicted", "measured", "negatives an anchor")],
            [scaling(found, world) for world in WORLDS],
        ),
        "",
        "What a rank hands to collectives in a step, counted and equal to its formula (projections "
        f"are P = {WIDTH} wide, C are batch norm's channels), and what it sends round a ring "
        "(`fit` knows the numbers of rows, and asks for none):",
        "",
        *table(["W", "what", "collective", "calls", "bytes are", "bytes", "sent"], counted),
        "",
        "DDP's flags, and the same with each rank's own batch norm, W = 2:",
        "",
        *table(
            ["flag", "step", "to none"],
            [[f, str(found[f]), f"{found[f].median / plain.median:.3f}"] for f in FLAGS],
        ),
        "",
        f"`python benchmarks/ranks.py`; {machine(CPU, 'lightning')}.",
    ]  # fmt: skip
    write("ranks-cpu", "Ranks (CPU)", lines)


if __name__ == "__main__":
    main()
