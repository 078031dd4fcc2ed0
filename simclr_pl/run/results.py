"""`results/*.json`: a number with all that says what it is."""

import hashlib
import json
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simclr_pl import __version__
from simclr_pl.writing import make_folder, write_text

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers hang on."""
    own = {"python": sys.version.split()[0], "simclr_pl": __version__}
    return own | {name: version(name) for name in PACKAGES}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, which is read once as long as it stays the same."""
    about = path.stat()
    return _sha256(path, about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, inode: int, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_result(folder: Path, *, protocol: str, split: str, seed: int, **fields: Any) -> Path:
    """Writes `<protocol>-<split>-seed<seed>.json`.

    Args:
        folder: `results` of the run directory.
        protocol: how the number came about, in a word.
        split: what it was scored on.
        seed: of the run.
        fields: `top1`, `top5` (fractions), `epoch`, `dataset`, `checkpoint` (hashed), and more.

    Returns:
        The file's path.
    """
    checkpoint = Path(fields.pop("checkpoint"))
    record = {
        "protocol": protocol,
        "split": split,
        "seed": seed,
        **fields,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": sha256(checkpoint),
        "versions": versions(),
    }
    make_folder(folder)
    path = folder / f"{protocol}-{split}-seed{seed}.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    return path
