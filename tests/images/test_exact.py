"""Each source against the plan written out: any ranks, micro-batches, workers and resumes."""

import pickle
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datamodules import ready
from each_source import CUT, WHOLE, Made
from PIL import Image
from torch import Tensor

from simclr_pl import SimCLRViews
from simclr_pl.core.batch import UNLABELLED, Batch
from simclr_pl.core.data.loaders import EvaluationLoader, TrainLoader
from simclr_pl.core.randomness import epoch_order

SIDE, SEED = 8, 5


def batch_size(images: int) -> int:
    """Three batches an epoch, with images left; no world but 1 divides it."""
    return max(size for size in range(7, images // 3 + 1) if size % 2 and size % 3)


def planned(images: int, epoch: int, rank: int, world: int, micros: int) -> list[list[int]]:
    """The places of this rank's rows, batch by batch: the definition."""
    order, size = epoch_order(SEED, epoch, images).numpy(), batch_size(images)
    batches = []
    for first in range(0, images - size + 1, size):
        mine: list[int] = []
        for part in np.array_split(order[first : first + size], micros):
            mine += part[len(part) * rank // world : len(part) * (rank + 1) // world].tolist()
        batches.append(mine)
    return batches


class Slow:
    """The rows of a batch, worked out image by image from what was written."""

    def __init__(self, made: Made, source: Any, views: SimCLRViews, labels: Sequence[int]) -> None:
        self.made, self.source, self.views, self.labels = made, source, views, labels
        self.image, self.row = cache(self._image), cache(self._row)

    def _image(self, place: int) -> Tensor:
        """`[C, H, W]`: 8 bits as they are, numbers from 0 to 1."""
        image = self.made.images[place]
        if self.made.scale is None:
            return torch.from_numpy(image)
        low, high = self.made.scale
        numbers = torch.from_numpy(image.astype(np.float32))
        return numbers.sub(low).div(high - low).clip(0, 1)

    def _row(self, place: int, epoch: int, clean: bool) -> Tensor:
        """What a source gives of an image: its crops, or all of it."""
        image = self.image(place)
        if not self.made.workers:
            return image
        height, width = image.shape[1:]
        boxes = [
            self.views.boxes(self.views.draw(torch.tensor([place]), epoch, view), height, width)[0]
            for view in range(2)
        ]
        if clean:
            side = round(min(height, width) * 0.875)
            boxes.append(torch.tensor([(height - side) // 2, (width - side) // 2, side, side]))
        return torch.stack([cropped(image, *box.tolist()) for box in boxes])

    def check(self, batch: Batch, places: list[int], epoch: int, *, clean: bool = False) -> None:
        """Whether a batch is of these images, in this order."""
        assert (batch.epoch, batch.index.tolist()) == (epoch, places)
        assert batch.labels.tolist() == [self.labels[place] for place in places]
        groups = self.made.groups and [self.made.groups[place] for place in places]
        found = None if batch.groups is None else batch.groups.tolist()
        assert (found and [self.source.group_names[n].decode() for n in found]) == groups
        rows = [self.row(place, epoch, clean) for place in places]
        if batch.sizes is None:
            assert batch.images.equal(torch.stack(rows))
            return
        assert batch.sizes.tolist() == [list(row.shape[1:]) for row in rows]
        tall, wide = batch.sizes.amax(0).tolist()
        assert batch.images.shape == (len(rows), 3, tall, wide)
        for got, row in zip(batch.images, rows, strict=True):
            height, width = row.shape[1:]
            assert got[:, :height, :width].equal(row)
            assert not got[:, height:].any()
            assert not got[:, :, width:].any()


def cropped(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """A box of an image `[C, H, W]`, resized by Pillow, band by band."""
    box = left, top, left + width, top + height
    planes = [Image.fromarray(plane).crop(box) for plane in image.numpy()]
    how = Image.Resampling.BILINEAR
    return torch.stack([torch.from_numpy(np.array(p.resize((SIDE, SIDE), how))) for p in planes])


def hidden(made: Made, held: Sequence[int]) -> list[bool]:
    """Whether an image's label is hidden: those held out, and all of their groups."""
    groups = made.groups or range(len(made.images))
    return [group in {groups[place] for place in held} for group in groups]


CASES = [*((kind, 0) for kind in WHOLE | CUT), *((kind, 2) for kind in CUT)]


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process:DeprecationWarning"
)
@pytest.mark.parametrize(("kind", "workers"), CASES)
def test_any_ranks_and_any_resume_get_the_planned_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int
) -> None:
    made = (WHOLE | CUT)[kind](tmp_path, monkeypatch)
    how = {"image_size": SIDE, "seed": SEED, "range": made.range, **made.more}
    data = ready(made.given, str(made.root), 8, **how)
    assert data.whole.held is not None
    source, held = data.whole.train, data.whole.held.tolist()
    if made.workers:  # as spawned ones get it, without what is open
        source = pickle.loads(pickle.dumps(source))
    source = source.prepared(data.views, data.views, workers)
    count, size = len(made.images), batch_size(len(made.images))
    assert len(source) == count
    labels = [
        UNLABELLED if hide else label
        for hide, label in zip(hidden(made, held), made.labels, strict=True)
    ]
    slow = Slow(made, source, data.views, labels)
    for epoch, micros in ((0, 1), (3, 2)):
        for world in (1, 2, 3):
            seen = list[int]()
            for rank in range(world):
                loader = TrainLoader(
                    source, size, rank, world, SEED, partial(int, epoch), micro_batches=micros
                )
                plan = planned(count, epoch, rank, world, micros)
                for batch, places in zip(loader, plan, strict=True):
                    slow.check(batch, places, epoch)
                    seen += places
            assert sorted(seen) == sorted(epoch_order(SEED, epoch, count)[: 3 * size].tolist())
    # A resume in mid-epoch, and the whole epoch behind it.
    now = {"epoch": 1}
    first = TrainLoader(source, size, 1, 2, SEED, lambda: now["epoch"])
    assert len([batch for _, batch in zip(range(2), first, strict=False)]) == 2
    again = TrainLoader(source, size, 1, 2, SEED, lambda: now["epoch"])
    again.load_state_dict(first.state_dict())
    for epoch, done in ((1, 2), (2, 0)):
        now["epoch"] = epoch
        for batch, places in zip(again, planned(count, epoch, 1, 2, 1)[done:], strict=True):
            slow.check(batch, places, epoch)
    source.close()
    # Those held out, each once.
    val = data.whole.val.prepared(data.views, data.views, workers)
    kept = made._replace(
        images=[made.images[place] for place in held],
        groups=made.groups and [made.groups[place] for place in held],
    )
    slow = Slow(kept, val, data.views, [made.labels[place] for place in held])
    for rank in range(2):
        evaluation = EvaluationLoader(val, 7, rank, 2, "both")
        for batch, at in zip(evaluation, evaluation.plan, strict=True):
            slow.check(batch, at.tolist(), 0, clean=True)
    val.close()
