"""What pretraining is worth on Fashion-MNIST: the README's table of protocols, three seeds.

    python benchmarks/fashion_mnist.py          # three pretrainings and 48 evaluations

Runs `fit`, `linear`, `knn` and `finetune` for each seed (what is there already is read; what was
broken off goes on), and writes benchmarks/results/fashion-mnist.md.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from measuring import table, write

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs" / "fashion_mnist.yaml"
SEEDS = (0, 1, 2)
SIMCLR = (sys.executable, "-m", "simclr_pl")

PROTOCOLS = {
    "linear, all labels": ("linear-pixels", "linear-random", "linear"),
    "kNN, all labels": ("knn-pixels", "knn-random", "knn"),
    "linear, 10 % of the labels": ("linear-pixels-0.1", "linear-random-0.1", "linear-0.1"),
    "whole network trained, 10 % of the labels": ("", "supervised-0.1", "finetune-0.1"),
    "linear, 1 % of the labels": ("linear-pixels-0.01", "linear-random-0.01", "linear-0.01"),
    "whole network trained, 1 % of the labels": ("", "supervised-0.01", "finetune-0.01"),
}
"""Rows of the table: protocols of the three columns."""

HEADER = [
    "top-1 on test",
    "raw pixels",
    "untrained encoder",
    "pretrained encoder",
    "gain, at least",
]


def command(protocol: str) -> list[str]:
    """`linear-random-0.1` is `linear --baseline random --label_fraction 0.1`."""
    name, *rest = protocol.split("-")
    options = {"supervised": ["finetune", "--from_scratch"]}.get(name, [name])
    options += ["--wandb", "off"] if name in ("supervised", "finetune") else []
    for part in rest:
        options += [("--label_fraction" if part[0].isdigit() else "--baseline"), part]
    return options


def result(run: Path, protocol: str, seed: int) -> dict[str, Any]:
    """A protocol's JSON, evaluated where it isn't there."""
    path = run / "results" / f"{protocol}-test-seed{seed}.json"
    if not path.exists():
        resume = ["--resume"] if protocol.startswith(("finetune", "supervised")) else []
        subprocess.run([*SIMCLR, *command(protocol), "--run_dir", str(run), *resume], check=True)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def pretrain(run: Path, seed: int) -> None:
    """The shipped recipe, with another seed, unless that is done."""
    if (run / "results").is_dir():
        return
    recipe = ["--config", str(CONFIG), "--seed_everything", str(seed), "--wandb", "off"]
    subprocess.run([*SIMCLR, "fit", *recipe, "--run_dir", str(run), "--resume"], check=True)


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if values else "-"


def least_gain(scores: list[list[float]]) -> str:
    """The pretrained column over the better of the others, in the seed where that is least."""
    *others, pretrained = [column for column in scores if column]
    gains = [own - max(rest) for own, *rest in zip(pretrained, *others, strict=True)]
    return f"{min(gains):+.3f}"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/benchmark-fashion_mnist")
    runs = {seed: folder / f"seed{seed}" for seed in SEEDS}
    for seed, run in runs.items():
        pretrain(run, seed)
    rows = []
    for title, protocols in PROTOCOLS.items():
        every = [[result(r, p, s)["top1"] for s, r in runs.items() if p] for p in protocols]
        rows.append([title, *map(cell, every), least_gain(every)])
    last = result(runs[0], "linear", 0)
    epochs = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["trainer"]["max_epochs"]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    lines = [
        *table(HEADER, rows),
        "",
        f"Mean ± standard deviation of {len(SEEDS)} seeds, of pretraining (`configs/fashion_mnist."
        f"yaml`, {epochs} epochs, the last one's weights) and of the draw of labels alike: one "
        "draw for all columns. The gain is over the better of the other two, in the seed where it "
        "is least. All labels are 54,000, 10 % are 5,400, 1 % are 540. The untrained encoder, "
        "trained as a whole, is the supervised baseline: the same network, labels, crops and steps "
        "from fresh weights. Scored once on the 10,000 test images; everything chosen was chosen "
        "on labels of train.",
        "",
        f"`python benchmarks/fashion_mnist.py`; {versions}; CPU.",
    ]
    write("fashion-mnist", "What is pretraining worth? Fashion-MNIST", lines)


if __name__ == "__main__":
    main()
