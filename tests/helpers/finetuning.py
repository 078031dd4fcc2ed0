"""Fine-tunings as short as they can be, and where they keep what."""

from pathlib import Path

import numpy as np
import torch.distributed as dist
from commands import Outcome, run
from distances import far
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from run_files import cells, checkpoint, rows, same_weights

FAST = (
    *("--label_fraction", "0.1", "--epochs", "4", "--batch_size", "50", "--wandb", "off"),
    *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"),
)
"""12 steps of 43 images on digits: a third of a second."""

STEPS = 12


def without(*options: str) -> list[str]:
    """`FAST`, less some of its options."""
    pairs = zip(FAST[::2], FAST[1::2], strict=True)
    return [part for pair in pairs if pair[0] not in options for part in pair]


def finetune(*args: object) -> Outcome:
    """Fine-tunes; it has to work without a word on standard error."""
    outcome = run("finetune", *FAST, *args)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome


def home(run_dir: Path, name: str = "finetune-0.1-seed0") -> Path:
    """Where a training is kept."""
    return run_dir / "finetune" / name


def weights(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


def distance(a: Path, b: Path) -> float:
    """The largest relative difference of two runs' weights, statistics and optimisers."""
    keys = ("state_dict", "optimizer_states")
    return far(*([checkpoint(path)[key] for key in keys] for path in (a, b)))


def assert_same_bits(a: Path, b: Path) -> None:
    """The same training in all that is written about it."""
    assert same_weights(checkpoint(a), checkpoint(b))
    assert distance(a, b) == 0
    assert checkpoint(a)["lr_schedulers"] == checkpoint(b)["lr_schedulers"]
    assert cells(a) == cells(b)


def curve(directory: Path, name: str = "finetune/loss") -> list[float]:
    return [float(row[name]) for row in rows(directory) if name in row]


def as_rank(*args: object) -> Outcome:
    """A command as one of several ranks."""
    # Lightning takes it from the environment when it is imported, which was before the fork.
    rank_zero_only.rank = dist.get_rank()
    return run(*args)


def npz(
    path: Path,
    channels: int = 1,
    classes: int = 4,
    images: int = 120,
    *,
    test: bool = True,
    labels: tuple[str, ...] = ("train", "val", "test"),
    val: bool = False,
) -> Path:
    """Images of 12 x 12 pixels, whose class is how bright they are."""
    of = np.arange(images) % classes
    noise = np.random.default_rng(0).integers(0, 40, (images, 12, 12, channels))
    pixels = (noise + 200 // classes * of[:, None, None, None]).astype(np.uint8)
    held = {}
    for split in ("train", *["val"] * val, *["test"] * test):
        held[f"{split}_images"] = pixels
        if split in labels:
            held[f"{split}_labels"] = of
    np.savez(path, **held)
    return path
