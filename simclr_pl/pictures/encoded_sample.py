"""An encoder at work on a sample of its data: what the pictures are drawn from."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.checkpoint import KEY, fit_weights, read_checkpoint
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.core.randomness import epoch_order
from simclr_pl.pictures.read_runs import data_name
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.features import Features, accelerator, in_eval_mode
from simclr_pl.run.config import own_encoder
from simclr_pl.run.directory import RunDirectory

MOST_TRAIN, MOST_VAL = 10_000, 2_000
"""Images that are encoded at most: more would change the pictures little."""

SAMPLE = -2
"""The epoch whose order the sample is drawn by: of no training, and not the holdout's -1."""

ROWS = 128
"""Images that are encoded at a time."""


class Snapshot(NamedTuple):
    """A sample of the data, encoded.

    Attributes:
        data: the data module, set up.
        train: clean images of the training split: the labelled ones, where there are any.
        val: clean images of the validation split.
        projections: `float [2, N, P]`, normalised, of both views of the images of `val`; empty
            without a projector.
        when: epoch, step and seed, for titles.
    """

    data: ContrastiveDataModule
    train: Features
    val: Features
    projections: Tensor
    when: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where the images of either split are unlabelled."""
        labelled = all(bool((s.labels != UNLABELLED).any()) for s in (self.train, self.val))
        return self.data.splits.classes if labelled else ()

    @property
    def name(self) -> str:
        """The name of the data."""
        return data_name(self.data.dataset, self.data.root)

    def share(self, split: Split) -> str:
        """`146 val images`, or `2,000 of 5,000 val images`."""
        used = len({"train": self.train, "val": self.val}[split].index)
        source = getattr(self.data.splits, split)
        all_of_it = len(candidates(source.labels))
        of = f" of {all_of_it:,}" if used < all_of_it else ""
        known = "labelled " if split == "train" and self.classes else ""
        return f"{used:,}{of} {known}{split} images"


def take_snapshot(run: RunDirectory, data: ContrastiveDataModule) -> Snapshot:
    """Encodes a sample of a run's data with its last checkpoint, on the accelerator if any.

    Args:
        run: with a checkpoint.
        data: of the run's configuration, set up.

    Raises:
        UserError: a checkpoint that cannot be read; features that are not finite.
    """
    checkpoint = read_checkpoint(run.last_checkpoint)
    model = _model(checkpoint, run).to(accelerator())
    when = moment(int(checkpoint["epoch"]), int(checkpoint["global_step"]), checkpoint[KEY]["seed"])
    snapshot = snap(model, data, when, (MOST_TRAIN, MOST_VAL), quiet=False)
    if snapshot is None:
        raise UserError(
            f"{run.last_checkpoint} gives features that are not finite: the run has diverged"
        )
    return snapshot


def snap(
    module: nn.Module,
    data: ContrastiveDataModule,
    when: str,
    most: tuple[int, int],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    *,
    quiet: bool,
) -> Snapshot | None:
    """Encodes a sample of the data in this process alone; the module is left as it was.

    Args:
        module: its `forward` gives features `[B, D]`; a `projector` of these, where it has one,
            projections.
        data: set up.
        when: for titles, from `moment`.
        most: images of train and of val that are encoded at most.
        context: what the network runs in: a trainer's precision.
        quiet: no progress bar.

    Returns:
        `None` where what is encoded is not finite.
    """
    with in_eval_mode(module):
        train, _ = _encode(module, data, "train", most[0], context, quiet=quiet)
        val, projections = _encode(module, data, "val", most[1], context, quiet=quiet)
    if not all(part.isfinite().all() for part in (train.features, val.features, projections)):
        return None
    return Snapshot(data, train, val, projections, when)


def moment(epoch: int, step: int, seed: int) -> str:
    """When a snapshot was taken, in words; epochs, counted from 0, are said from 1."""
    return f"epoch {epoch + 1} (step {step:,}), seed {seed}"


def candidates(labels: Tensor) -> Tensor:
    """Places of the labelled images, or of all where none is.

    In a training split with labels, the unlabelled images are or may be the validation holdout:
    each image of val would be its own nearest neighbour.
    """
    known = (labels != UNLABELLED).nonzero()[:, 0]
    return known if len(known) else torch.arange(len(labels))


def _model(checkpoint: dict[str, Any], run: RunDirectory) -> nn.Module:
    """Encoder and projector, built from what has been read: a running run may write anew."""
    hparams, source = checkpoint.get("hyper_parameters"), str(run.last_checkpoint)
    own = own_encoder([run.config])
    if not hparams:  # fine-tuned: what was the projector's part is no projector any more
        return load_backbone(checkpoint, source, encoder=own).encoder
    training = ("objective", "optimizer", "schedule")  # of which features know nothing
    known = {k: v for k, v in hparams.items() if not k.startswith(("_", *training))}
    model = SimCLR(**known | ({} if own is None else {"encoder": own}))
    model.on_load_checkpoint(checkpoint)
    weights = checkpoint["state_dict"].items()
    fit_weights(model, {k: v for k, v in weights if not k.startswith("objective.")}, source)
    return model


@torch.no_grad()
def _encode(
    module: nn.Module,
    data: ContrastiveDataModule,
    split: Split,
    most: int,
    context: Callable[[], AbstractContextManager[Any]],
    *,
    quiet: bool,
) -> tuple[Features, Tensor]:
    """Features of a random sample's clean images, and projections of its views (val's alone)."""
    source = getattr(data.splits, split)
    places = candidates(source.labels)
    if len(places) > most:
        places = places[epoch_order(data.split_seed, SAMPLE, len(places))[:most].sort().values]
    parts, projections = [], []
    plan, device = places.split(ROWS), next(module.parameters()).device
    projector = getattr(module, "projector", None)
    views = split == "val" and projector is not None
    batches = source.batches(plan, 0, "both" if views else "clean")
    bar = tqdm(batches, f"encoding {split}", len(plan), leave=False, disable=quiet or None)
    for batch in bar:
        clean = data.make_clean(batch.to(device), views=views)
        with context():
            features = module(clean.clean).float().cpu()
        # (Where images that cannot be read are skipped, a batch has fewer rows than the plan.)
        parts.append(Features(features, clean.labels.cpu(), clean.index.cpu()))
        if clean.views is not None and projector is not None:
            with context():
                z = projector(module(clean.views.views))
            z = F.normalize(z.float(), dim=1).cpu().unflatten(0, (clean.views.per_image, -1))
            projections.append(z[:2])  # of more than two views, the first two
    encoded = Features(*map(torch.cat, zip(*parts, strict=True)))
    return encoded, torch.cat(projections, 1) if projections else torch.empty(0)
