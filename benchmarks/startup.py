"""From the command to the end of the first training step, and what of it is importing Lightning.

    python benchmarks/startup.py           # 2 minutes

In turns, each in a process of its own: `python -m simclr_pl fit` on digits up to the end of its
first step, and `import lightning.pytorch.cli`, which every LightningCLI begins with. Writes
benchmarks/results/startup.md.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

import torch
from measuring import machine, table, write

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "digits.yaml"
TURNS = 7


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step() -> float:
    with tempfile.TemporaryDirectory() as folder:
        fit = ["-m", "simclr_pl", "fit", "--config", str(CONFIG), "--wandb", "off"]
        once = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
        return seconds(*fit, *once, "--run_dir", str(Path(folder) / "run"))


def main() -> None:
    work = {
        "`import lightning.pytorch.cli`": lambda: seconds("-c", "import lightning.pytorch.cli"),
        "`fit`, one step of digits, from start to end": first_step,
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(TURNS + 1):
        for name, run in work.items():
            taken = run()
            if turn:  # the first reads files from the disk
                times[name].append(taken)
    imports, _ = times.values()
    rows = []
    for name, values in times.items():
        low, median, high = quantiles(values, n=4, method="inclusive")
        ratios = [value / other for value, other in zip(values, imports, strict=True)]
        ratio = quantiles(ratios, n=4, method="inclusive")[1]
        rows.append([name, f"{median:.2f} s ({low:.2f} to {high:.2f})", f"{ratio:.2f} x"])
    lines = [
        *table(["what", "time", "of the import"], rows),
        "",
        f"Medians of {TURNS} turns, with quartiles.",
        "",
        f"`python benchmarks/startup.py`; {machine(torch.device('cpu'), 'lightning')}.",
    ]
    write("startup", "Start-up", lines)


if __name__ == "__main__":
    main()
