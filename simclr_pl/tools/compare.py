"""`compare`: raw pixels, the untrained encoder and the pretrained one, under one protocol."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from simclr_pl.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.data.sources import ArrayImages
from simclr_pl.errors import UserError
from simclr_pl.evaluate.features import Features, encode
from simclr_pl.evaluate.fewlabels import Score, margin_in_standard_errors, score
from simclr_pl.model.checkpoint import KEY, load_encoder, read_checkpoint
from simclr_pl.model.encoder import EncoderSpec, build_encoder
from simclr_pl.run.arguments import call, data_of
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.results import write_result
from simclr_pl.run.wandb import append_to_summary

COLUMNS = ("raw pixels", "untrained", "pretrained")


def compare(
    *,
    run_dir: str,
    split: Literal["val", "test"] = "val",
    labels_per_class: int = 5,
    draws: int = 5,
    require: float | None = None,
) -> dict[str, Score]:
    """Is pretraining worth it? Top-1 of raw pixels, the untrained and the pretrained encoder.

    Logistic regression on frozen, standardised features (C = 1, nothing tuned), with all labels of
    the training split and with a few of each class. Accuracies are fractions from 0 to 1.

    Args:
        run_dir: directory of the run.
        split: what to score on; keep test for the end.
        labels_per_class: images of each class in a few-label draw.
        draws: few-label draws, the same for every column.
        require: fail unless the pretrained encoder beats the untrained one by so many standard
            errors at few labels.

    Returns:
        The scores by column.

    Raises:
        UserError: no run there, no labels, too few of them; or the margin that was required is
            missed.
    """
    if labels_per_class < 1 or draws < 2:
        raise UserError("compare needs at least 1 label a class and 2 draws")
    run = RunDirectory(Path(run_dir))
    checkpoint = read_checkpoint(run.last_checkpoint)
    data = data_of([run.config])
    about = checkpoint[KEY]
    encoders = {
        "untrained": _untrained(about),
        "pretrained": load_encoder(run.last_checkpoint),
    }
    scores = {}
    for column in COLUMNS:
        train, test = (
            _raw_pixels(data, s) if column == "raw pixels" else encode(encoders[column], data, s)
            for s in ("train", split)
        )
        scores[column] = score(train, test, labels_per_class, draws)
    margin = margin_in_standard_errors(scores["pretrained"], scores["untrained"])
    labels = int((data.splits.train.labels >= 0).sum())
    sys.stdout.write(_table(scores, margin, f"the {split} split of {data.dataset}", labels) + "\n")
    path = write_result(
        run.results,
        protocol="logistic",
        split=split,
        seed=about["seed"],
        top1=scores["pretrained"].all_labels,
        top5=None,
        epoch=int(checkpoint["epoch"]) + 1,
        dataset=data.dataset,
        labels=labels,
        labels_per_class=labels_per_class,
        columns={name: s._asdict() for name, s in scores.items()},
        checkpoint=run.last_checkpoint,
    )
    sys.stdout.write(f"written to {path}\n")
    append_to_summary(run, {f"logistic/{split}_top1": scores["pretrained"].all_labels})
    if require is not None and margin < require:
        raise UserError(
            f"pretraining is {margin:.1f} standard errors better than no training with "
            f"{labels_per_class} labels a class, which is less than the {require:g} required: "
            "train longer, or look at the curves"
        )
    return scores


def _untrained(about: dict[str, Any]) -> nn.Module:
    """The very weights that the run began with: they follow from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(about["seed"])
        return build_encoder(EncoderSpec(**about["encoder"])).module.eval()


def _raw_pixels(data: ContrastiveDataModule, split: Split) -> Features:
    """Pixels as they are in memory; of image files, those of the clean view."""
    source = getattr(data.splits, split)
    if isinstance(source, ArrayImages):
        pixels = source.images.flatten(1).float() / 255
        return Features(pixels, source.labels, torch.arange(len(source)))
    flatten = nn.Sequential(nn.Flatten(), nn.Identity())
    flatten.register_parameter("device", nn.Parameter(torch.empty(0)))
    return encode(flatten, data, split)


def _table(scores: dict[str, Score], margin: float, where: str, labels: int) -> str:
    few = f"{scores['pretrained'].labels_per_class} labels a class"
    rows = {
        f"all {labels} labels": [f"{s.all_labels:.3f}" for s in scores.values()],
        few: [f"{s.mean:.3f} ± {s.spread:.3f}" for s in scores.values()],
    }
    width = max(map(len, rows))
    gain = scores["pretrained"].mean - scores["untrained"].mean
    return "\n".join(
        [
            f"top-1 on {where}: logistic regression on frozen features",
            f"({few}: mean ± standard deviation of {len(scores['pretrained'].draws)} draws)",
            f"  {'':<{width}}" + "".join(f"  {name:>13}" for name in scores),
            *(f"  {n:<{width}}" + "".join(f"  {c:>13}" for c in row) for n, row in rows.items()),
            f"with {few}, pretrained minus untrained is {gain:+.3f}: {margin:.1f} standard errors",
        ]
    )


def run_cli(args: list[str]) -> None:
    """The command."""
    call(compare, args)
