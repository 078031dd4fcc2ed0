"""Bad images of manifests, shards, hubs and own Datasets: the first one, or one of many."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from arrays import sentence
from hub_files import png, table
from manifests import write_manifest
from noise import pixels
from number_files import Array, deep
from PIL import Image
from shard_files import write_shards
from torch.utils.data import Dataset

from simclr_pl import SimCLRViews, UserError
from simclr_pl.core.data.sources import OnBadImage, Range
from simclr_pl.images.datasets import load
from simclr_pl.images.workers.images import WorkerImages

COUNT = 100
"""One bad image of 100 is as many as may be skipped."""


def tiff(image: Array) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", planarconfig="contig")
    return file.getvalue()


def in_manifest(root: Path, files: Sequence[bytes]) -> Any:
    suffix = ".png" if files[10].startswith(b"\x89PNG") else ".tif"
    names = [f"{place:03}{suffix}" for place in range(len(files))]
    for name, content in zip(names, files, strict=True):
        (root / name).write_bytes(content)
    return "manifest", write_manifest(root / "list.csv", [[name] for name in names])


def in_shards(root: Path, files: Sequence[bytes]) -> Any:
    return "shards", write_shards(root / "set", files, each=40)


def in_hub(root: Path, files: Sequence[bytes]) -> Any:
    table(list(files)).save_to_disk(root / "set")
    return f"hub:{root / 'set'}", root


class Own(Dataset[Any]):
    """Images that are decoded when they are asked for."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Any:
        content = io.BytesIO(self.files[place])
        if self.files[10].startswith(b"\x89PNG"):
            return Image.open(content)
        return torch.from_numpy(tifffile.imread(content).transpose(2, 0, 1).copy())


def of_ones_own(root: Path, files: Sequence[bytes]) -> Any:
    return Own(files), root


WAYS = {"manifest": in_manifest, "shards": in_shards, "hub": in_hub, "own": of_ones_own}

EIGHT = [png(pixels(12 + i % 3, 12, 3, seed=i)) for i in range(COUNT)]
FLOATS = [tiff(deep(12 + i % 3, 12, 5, top=4096, kind=np.float32, seed=i)) for i in range(COUNT)]
NAN = deep(12, 12, 5, top=4096, kind=np.float32)
NAN[3, 4, 1] = np.nan

FAULTS: dict[str, tuple[list[bytes], Range | None, bytes]] = {
    "cut off": (EIGHT, None, EIGHT[0][:-200]),
    "of zero bytes": (EIGHT, None, b""),
    "no image": (EIGHT, None, b"these are words"),
    "numbers cut off": (FLOATS, (0.0, 4095.0), FLOATS[0][:-200]),
    "numbers of zero bytes": (FLOATS, (0.0, 4095.0), b""),
    "NaN": (FLOATS, (0.0, 4095.0), tiff(NAN)),
    "other bands": (FLOATS, (0.0, 4095.0), tiff(NAN[..., 2:])),
}
SAID = {"NaN": "NaN or infinite", "other bands": "3 channels"}


# (What the first image has, all must have: another number of bands is tried behind it.)
@pytest.mark.parametrize(
    ("fault", "at"),
    [(fault, at) for fault in FAULTS for at in (0, 50) if at or fault != "other bands"],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_bad_image_is_an_error_or_left_out(
    way: str,
    fault: str,
    at: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files, limits, bad = FAULTS[fault]
    files = [bad if place == at else content for place, content in enumerate(files)]
    given, root = WAYS[way](tmp_path, files)

    with pytest.raises(UserError) as caught:
        read(given, root, "error", limits, at)
    assert SAID.get(fault, "") in sentence(caught)
    near = [place for place in (at - 1, at + 1) if place >= 0]
    assert read(given, root, "skip", limits, at) == near
    assert "is left out (" in capsys.readouterr().out


def read(given: Any, root: Path, how: OnBadImage, limits: Range | None, at: int) -> list[int]:
    """Places of the images that come of the one at `at` and its neighbours."""
    source = load(given, root, on_bad_image=how, range=limits).train
    assert isinstance(source, WorkerImages)
    source.statistics()
    views = SimCLRViews(12, seed=1)
    places = torch.arange(max(at - 1, 0), at + 2)
    (batch,) = source.prepared(views, views, 0).batches([places], 0, "clean")
    return batch.index.tolist()
