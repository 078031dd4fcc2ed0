"""The health monitor: what it costs of a training step.

    python benchmarks/health.py            # 5 minutes on a CPU core; on CUDA where there is

A step is forward, backward and update of ResNet-18 with a 3x3 stem at 32 px, batch 512. Beside it,
in turns of their own since they are thousands of times shorter: the monitor's hook on a step on
which it looks, on one on which it doesn't, and RankMe at the end of a validation of 5,000 images.
Writes benchmarks/results/health-cpu.md, or health-cuda.md.
"""

import math
from types import SimpleNamespace
from typing import Any

import torch
from measuring import in_turns, machine, table, write

from simclr_pl import HealthMonitor, NTXentLoss
from simclr_pl.core.batch import EvaluationOutput, StepOutput
from simclr_pl.core.model.encoder import EncoderSpec, build_encoder
from simclr_pl.core.model.projector import build_projector

BATCH, EVERY, VALIDATION = 512, 50, 5000


class Step:
    """A training step, and what it shows to callbacks."""

    def __init__(self, device: torch.device) -> None:
        built = build_encoder(EncoderSpec("resnet18", 3, 32, "small", {}))
        self.encoder = built.module.to(device, memory_format=torch.channels_last)
        self.projector = build_projector(built.width, 2, None, 128).to(device)
        self.loss = NTXentLoss()
        parameters = [*self.encoder.parameters(), *self.projector.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9)
        images = torch.randn(2 * BATCH, 3, 32, 32, device=device)
        self.images = images.to(memory_format=torch.channels_last)
        self.output: StepOutput

    def __call__(self) -> None:
        features = self.encoder(self.images)
        projections = self.projector(features)
        loss, anchors = self.loss.with_statistics(*projections.chunk(2))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.output = StepOutput(
            loss=loss.detach(),
            features=features.detach(),
            projections=projections.detach(),
            labels=torch.zeros(2 * BATCH, dtype=torch.int64),
            positive_rank=anchors.positive_rank,
            chance=math.log(2 * BATCH - 1),
        )


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = Step(device)
    whole = in_turns({"step": step}, device, 2 if device.type == "cpu" else 20)["step"]
    trainer: Any = SimpleNamespace(
        global_step=0, loggers=[], sanity_checking=False, current_epoch=0, is_global_zero=False
    )
    module: Any = SimpleNamespace(log=lambda *_, **__: None)
    monitor = HealthMonitor(EVERY)
    width = step.output["features"].shape[1]
    rows, labels = torch.randn(VALIDATION, width, device=device), torch.zeros(0, dtype=torch.int64)
    validation = EvaluationOutput(features=rows, labels=labels, index=labels)

    def hook(at: int) -> None:
        trainer.global_step = at
        monitor.on_train_batch_end(trainer, module, step.output, None, 0)

    def rankme() -> None:
        monitor.on_validation_batch_end(trainer, module, validation, None, 0)
        monitor.on_validation_epoch_end(trainer, module)

    parts = {"look": lambda: hook(EVERY), "no look": lambda: hook(EVERY + 1), "RankMe": rankme}
    times = in_turns(parts, device, 30)
    each = times["look"].median / EVERY + times["no look"].median
    share = f"{each / whole.median:.4%}"
    lines = [
        f"ResNet-18, 3x3 stem, 32 px, batch {BATCH}, float32, a look every {EVERY} steps.",
        "",
        *table(
            ["what", "time"],
            [
                ["training step", str(whole)],
                [f"the monitor on one step in {EVERY}", str(times["look"])],
                ["the monitor on any other step", str(times["no look"])],
                ["the monitor's share of a step, amortised", share],
                [f"RankMe, {VALIDATION:,} features of width {width}", str(times["RankMe"])],
            ],
        ),
        "",
        f"`python benchmarks/health.py`; {machine(device, 'lightning')}.",
    ]
    write(f"health-{device.type}", f"The health monitor's cost ({device.type.upper()})", lines)


if __name__ == "__main__":
    main()
