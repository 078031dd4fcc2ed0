"""The README's table: raw pixels, untrained and pretrained encoder on digits, three seeds.

    python benchmarks/digits.py            # about 5 minutes on two CPU cores

Runs `fit` and `compare` of the shipped recipe for each seed (runs that are there already are read),
and writes benchmarks/results/digits.md.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import table, write

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
COLUMNS = ("raw pixels", "untrained", "pretrained")


def result(seed: int, runs: Path) -> dict[str, Any]:
    """The JSON of one seed, from a run that is made where it isn't there."""
    run = runs / f"seed{seed}"
    path = run / "results" / f"logistic-test-seed{seed}.json"
    if not path.exists():
        config = HERE.parent / "configs" / "digits.yaml"
        simclr = [sys.executable, "-m", "simclr_pl"]
        recipe = ["--config", str(config), "--seed_everything", str(seed), "--wandb", "off"]
        subprocess.run([*simclr, "fit", *recipe, "--run_dir", str(run), "--resume"], check=True)
        subprocess.run([*simclr, "compare", "--run_dir", str(run), "--split", "test"], check=True)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/benchmark-digits")
    results = [result(seed, runs) for seed in SEEDS]
    first = results[0]
    every = {c: [r["columns"][c]["all_labels"] for r in results] for c in COLUMNS}
    few = {c: [statistics.mean(r["columns"][c]["draws"]) for r in results] for c in COLUMNS}
    draws = len(first["columns"]["pretrained"]["draws"])
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    rows = [
        [f"all {first['labels']} labels", *(cell(every[c]) for c in COLUMNS)],
        [f"{first['labels_per_class']} labels a class", *(cell(few[c]) for c in COLUMNS)],
    ]
    header = ["top-1 on test", "raw pixels", "untrained encoder", "pretrained encoder"]
    lines = [
        *table(header, rows),
        "",
        "Logistic regression on frozen, standardised features (C = 1, nothing tuned) of "
        "scikit-learn's digits, scored on the 339 test images. Mean ± standard deviation over "
        f"{len(SEEDS)} seeds of pretraining at epoch {first['epoch']}; with few labels a seed is "
        f"the mean of {draws} draws, the same draws for every column and seed.",
        "",
        f"`python benchmarks/digits.py`; {versions}; CPU.",
    ]
    write("digits", "Is pretraining worth it? Digits", lines)


if __name__ == "__main__":
    main()
