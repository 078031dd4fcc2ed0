"""`compare`: raw pixels, the untrained encoder and the pretrained one, under one protocol."""

import sys
from typing import Any, Literal

from simclr_pl.commandline.baselines import choose_encoder
from simclr_pl.commandline.call import call
from simclr_pl.commandline.over_seeds import log_to_wandb
from simclr_pl.commandline.target import DataChoice, find_pretrained
from simclr_pl.core.errors import UserError
from simclr_pl.images.groups import Groups
from simclr_pl.protocols.features import encode
from simclr_pl.protocols.few_labels import Score, margin_in_standard_errors, score
from simclr_pl.run.results import write_result
from simclr_pl.tracking.wandb_mode import Mode

COLUMNS = {"pixels": "raw pixels", "random": "untrained", None: "pretrained"}
"""Titles of the columns by baseline; a column of other weights comes before the last one."""


def compare(
    *,
    run_dir: str,
    split: Literal["val", "test"] = "val",
    labels_per_class: int = 5,
    draws: int = 5,
    baseline: str | None = None,
    require: float | None = None,
    wandb: Mode = "auto",
) -> dict[str, Score]:
    """Is pretraining worth it? Top-1 of raw pixels, the untrained and the pretrained encoder.

    Logistic regression on frozen, standardised features (C = 1, nothing tuned), with all labels of
    the training split and with a few of each class. Accuracies are fractions from 0 to 1.

    Args:
        run_dir: directory of the run.
        split: what to score on; keep test for the end.
        labels_per_class: images of each class in a few-label draw.
        draws: few-label draws, the same for every column.
        baseline: one more column: imagenet (the weights that the encoder's library publishes), or a
            file of weights.
        require: fail unless the pretrained encoder beats the untrained one by so many standard
            errors at few labels.
        wandb: Weights & Biases; auto is online when logged in, else offline.

    Returns:
        The scores by column.

    Raises:
        UserError: no run there, no labels, too few of them; or the margin that was required is
            missed.
    """
    if labels_per_class < 1 or draws < 2:
        raise UserError("compare needs at least 1 label a class and 2 draws")
    if baseline in COLUMNS and baseline is not None:
        raise UserError(
            f"baseline is {baseline}, which is a column of compare in any case: give imagenet or a "
            "file of weights"
        )
    pretrained = find_pretrained(None, run_dir, None, DataChoice())
    asked = [baseline] if baseline is not None else []
    chosen = [choose_encoder(pretrained, each) for each in ("pixels", "random", *asked, None)]
    data = pretrained.data()
    scores: dict[str, Score] = {}
    others: dict[str, str] = {}
    for encoder, label, weights in chosen:
        train, scored = (encode(encoder, data, s, labelled_only=True) for s in ("train", split))
        column = COLUMNS.get(label) or str(label)
        groups = Groups.of(data.splits.train)
        scores[column] = score(train, scored, labels_per_class, draws, groups)
        others |= {} if weights is None else {column: weights}
    margin = margin_in_standard_errors(scores["pretrained"], scores["untrained"])
    labels = int((data.splits.train.labels >= 0).sum())
    sys.stdout.write(_table(scores, others, f"the {split} split of {data.dataset}", labels))
    top1, epoch = scores["pretrained"].all_labels, pretrained.epoch
    entries: dict[str, Any] = {
        "top1": top1, "top5": None, "epoch": epoch, "dataset": data.dataset, "labels": labels,
        "labels_per_class": labels_per_class,
        "columns": {name: s._asdict() for name, s in scores.items()},
        **({"baseline_weights": others} if others else {}), "checkpoint": pretrained.checkpoint,
    }  # fmt: skip
    folder, seed = pretrained.folder("results"), pretrained.seed
    path = write_result(folder, protocol="logistic", split=split, seed=seed, **entries)
    sys.stdout.write(f"written to {path}\n")
    about = {"split": split, "labels": labels, "epoch": epoch}
    log_to_wandb(pretrained, "logistic", {f"logistic/{split}_top1": top1}, about, wandb)
    if require is not None and margin < require:
        raise UserError(
            f"pretraining is {margin:.1f} standard errors better than no training with "
            f"{labels_per_class} labels a class, which is less than the {require:g} required: "
            "train longer, or look at the curves"
        )
    return scores


def _table(scores: dict[str, Score], others: dict[str, str], where: str, labels: int) -> str:
    """Lines of the table, and behind it what pretraining gains over each start of a network.

    Args:
        scores: by column.
        others: whose weights a column has, where they are somebody else's.
        where: what was scored.
        labels: of the training split.
    """
    few = f"{scores['pretrained'].labels_per_class} labels a class"
    rows = {
        f"all {labels} labels": [f"{s.all_labels:.3f}" for s in scores.values()],
        few: [f"{s.mean:.3f} ± {s.spread:.3f}" for s in scores.values()],
    }
    width, wide = max(map(len, rows)), max(13, *map(len, scores))
    best = scores["pretrained"]
    lines = [
        f"top-1 on {where}: logistic regression on frozen features",
        f"({few}: mean ± standard deviation of {len(best.draws)} draws)",
        f"  {'':<{width}}" + "".join(f"  {name:>{wide}}" for name in scores),
        *(f"  {n:<{width}}" + "".join(f"  {c:>{wide}}" for c in row) for n, row in rows.items()),
        *(f"{column} is {weights}" for column, weights in others.items()),
    ]
    for column in ("untrained", *others):
        gain = f"{best.mean - scores[column].mean:+.3f}"
        margin = f"{margin_in_standard_errors(best, scores[column]):.1f} standard errors"
        lines.append(f"with {few}, pretrained minus {column} is {gain}: {margin}")
    return "\n".join([*lines, ""])


def run_cli(args: list[str]) -> None:
    """The command."""
    call(compare, args)
