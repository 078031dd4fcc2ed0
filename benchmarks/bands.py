"""Tiles of 13 bands of 16 bits against RGB tiles of 8 bits: what a worker does, and what a device.

    python benchmarks/bands.py             # 2 minutes on an idle core

Generated TIFF files of 256 x 256 pixels in a temporary folder, uncompressed; two views of 224
pixels of each. Both are read by this process, in turns: 13 bands by `--data.range`, RGB as it is.
Writes benchmarks/results/bands-cpu.md.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch
from measuring import Timing, in_turns, machine, table, write
from scipy.ndimage import gaussian_filter

from simclr_pl import ContrastiveDataModule
from simclr_pl.core.batch import Batch

FILES, SIDE, SIZE, TURNS = 128, 256, 224, 9
"""Files of each kind, their side and a view's side in pixels, and turns."""

BANDS, RANGE = 13, (0, 10_000)

BAR = BANDS / 3 * 1.5
"""Most that reading 13 bands may take, in times of RGB: half as much again for each band."""

Work = Callable[[], object]


def tiles(root: Path) -> None:
    """Smooth noise, as reflectance: of 13 bands in 16 bits, and three of them in 8."""
    generator = np.random.default_rng(0)
    for folder in ("thirteen", "rgb"):
        (root / folder).mkdir()
    for number in range(FILES):
        noise = gaussian_filter(generator.random((SIDE, SIDE, BANDS)), (2, 2, 1))
        band = ((noise - noise.min()) / np.ptp(noise) * RANGE[1]).astype(np.uint16)
        how = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(root / "thirteen" / f"{number}.tif", band, **how)
        rgb = (band[..., :3] // 40).clip(0, 255).astype(np.uint8)
        tifffile.imwrite(root / "rgb" / f"{number}.tif", rgb, photometric="rgb")


def work(root: Path, *, many: bool) -> tuple[Work, Work]:
    """Reads all files for two views of each; and makes the views of one batch."""
    data = ContrastiveDataModule(
        *("folder", str(root / ("thirteen" if many else "rgb")), FILES // 2, SIZE),
        num_workers=0, labels="none", range=RANGE if many else None,
    )  # fmt: skip
    data.setup()
    train = data.splits.train
    plan = list(torch.arange(len(train)).split(32))

    def read() -> Batch:
        first, *_ = train.batches(plan, 0, "views", training=True)
        return first

    batch = read()
    return read, lambda: data.make_views(batch)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tiles(root)
        read, view = work(root, many=True)
        read_rgb, view_rgb = work(root, many=False)
        times = in_turns(
            {"read": read, "read_rgb": read_rgb, "view": view, "view_rgb": view_rgb},
            torch.device("cpu"),
            TURNS,
        )
    rows = [
        ["reading, and cutting the views", *_row(times["read"], times["read_rgb"])],
        ["making views of 32 tiles", *_row(times["view"], times["view_rgb"])],
    ]
    lines = [
        *table(["what", "13 bands, 16 bits", "RGB, 8 bits", "times"], rows),
        "",
        f"Medians of {TURNS} turns, with quartiles; {SIDE} x {SIDE} pixels, two views of {SIZE}. "
        f"The bar of reading is {BAR:.1f} times.",
        "",
        f"`python benchmarks/bands.py`; {machine(torch.device('cpu'), 'tifffile', 'pillow')}.",
    ]
    write("bands-cpu", "Bands and bits (CPU)", lines)


def _row(many: Timing, rgb: Timing) -> list[str]:
    return [str(many), str(rgb), f"{many.median / rgb.median:.1f} x"]


if __name__ == "__main__":
    main()
