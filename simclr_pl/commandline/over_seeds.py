"""Evaluations over seeds: written as results, printed with mean and spread, logged to W&B."""

import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from simclr_pl.commandline.baselines import choose_encoder
from simclr_pl.commandline.target import Pretrained
from simclr_pl.core.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.images.groups import Groups
from simclr_pl.images.readers.reader import say_once
from simclr_pl.images.splits import draw_fraction, drawn_groups
from simclr_pl.protocols.features import accelerator, encode
from simclr_pl.protocols.scoring import Rows, Score, labelled
from simclr_pl.run.directory import is_rank_zero
from simclr_pl.run.results import write_result
from simclr_pl.tracking.evaluations import log_evaluation
from simclr_pl.tracking.wandb_mode import Mode

IN_WANDB = {"knn": "knn_chosen"}
"""Names in W&B where a protocol's own is taken: `knn/val_top1` is the monitor's, of k = 20."""


class Frozen(NamedTuple):
    """A pretrained encoder in front of data, as that encoder was trained to see images.

    Attributes:
        pretrained: the checkpoint and its run.
        encoder: in eval mode, on the GPU where there is one.
        data: set up; crops and flips are the recipe's, colours are left alone.
        label: a short name of the baseline that is in the encoder's place, if one is.
        about: entries of the results that describe this baseline.
    """

    pretrained: Pretrained
    encoder: nn.Module
    data: ContrastiveDataModule
    label: str | None
    about: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """The encoder's device."""
        return next(self.encoder.parameters()).device

    def rows(self, split: Split) -> Rows:
        """Labelled features of a split's clean images, on the encoder's device."""
        encoded = encode(self.encoder, self.data, split, labelled_only=True)
        self.data.teardown()  # processes that have decoded it
        groups = Groups.of(getattr(self.data.splits, split))
        return labelled(encoded, split, groups).to(self.device)

    def score(
        self,
        name: str,
        split: Split,
        label_fraction: float,
        seeds: list[int] | None,
        evaluate: Callable[[Rows, Rows, int], Score],
        wandb: Mode,
        **fields: Any,
    ) -> list[Score]:
        """Evaluates the encoder with each seed, and reports the scores.

        Args:
            name: the protocol's name, which becomes `knn-pixels` for a baseline and
                `linear-random-0.01` for a share of the labels.
            split: the split that is scored.
            label_fraction: share of each class's labelled training images.
            seeds: of evaluation (default: the run's seed).
            evaluate: gives the score from rows of train, rows of `split`, and a seed.
            wandb: whether and how W&B is used.
            fields: further entries of the results.
        """
        scored, train = self.rows(split), self.rows("train")

        def with_seed(seed: int) -> Score:
            places = draw_fraction(train.labels, label_fraction, seed, train.groups)
            if train.groups is not None and label_fraction < 1:
                say_once(drawn_groups(label_fraction, train.labels, places, train.groups))
            return evaluate(train.at(places), scored, seed)

        parts = [name, self.label, None if label_fraction == 1 else f"{label_fraction:g}"]
        epoch = 0 if self.about["baseline"] else self.pretrained.epoch
        return report(
            self.pretrained, "-".join(filter(None, parts)), split, seeds or [self.pretrained.seed],
            with_seed, "on frozen features", wandb, label_fraction=label_fraction, epoch=epoch,
            **self.about, **fields,
        )  # fmt: skip


def freeze(pretrained: Pretrained, baseline: str | None = None) -> Frozen:
    """An encoder on the GPU, where there is one, and its data; a line says whose weights it has.

    Args:
        pretrained: the checkpoint, and its run.
        baseline: what to put in its encoder's place, as `choose_encoder` takes it.

    Raises:
        UserError: as `choose_encoder`; whatever is wrong with the data.
    """
    chosen = choose_encoder(pretrained, baseline)
    about: dict[str, Any] = {"baseline": baseline}
    if chosen.weights is not None:
        about["baseline_weights"] = chosen.weights
        sys.stdout.write(f"baseline: {chosen.weights}\n")
    encoder = chosen.encoder.to(accelerator())
    return Frozen(pretrained, encoder, pretrained.data(), chosen.label, about)


def report(
    pretrained: Pretrained,
    protocol: str,
    split: Split,
    seeds: list[int],
    evaluate: Callable[[int], Score],
    how: str,
    wandb: Mode | None = None,
    **fields: Any,
) -> list[Score]:
    """Evaluates with each seed, writes a result for each, and prints them with mean and spread.

    Mean and spread go to W&B as well. Of several ranks that evaluate together, rank 0 alone writes
    and prints.

    Args:
        pretrained: the checkpoint that is evaluated, and its run.
        protocol: its name, which starts the results' names.
        split: the split that is scored.
        seeds: of evaluation.
        evaluate: the score with a seed.
        how: how the encoder was used, in words.
        wandb: whether and how W&B is used; `None` where each seed has been a W&B run already.
        fields: further entries of the results, `epoch` among them: of pretraining, 0 for none.
    """
    _say(f"{protocol}, {how}, scored on the {split} split of {pretrained.dataset}")
    scores = []
    for seed in seeds:
        score = evaluate(seed)
        scores.append(score)
        if not is_rank_zero():
            continue
        entries = {
            "top1": score.top1, "top5": score.top5, **score.chosen, **fields,
            "dataset": pretrained.dataset, "pretraining_seed": pretrained.seed,
            "checkpoint": pretrained.checkpoint,
        }  # fmt: skip
        folder = pretrained.folder("results")
        path = write_result(folder, protocol=protocol, split=split, seed=seed, **entries)
        chosen = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in score.chosen.items())
        top5 = "" if score.top5 is None else f", top5 {score.top5:.4f}"
        _say(f"seed {seed}: top1 {score.top1:.4f}{top5} ({chosen}) in {path}")
    numbers: dict[str, float] = {}
    for name in ("top1", "top5"):
        values = [value for score in scores if (value := getattr(score, name)) is not None]
        if not values:  # top-5 of fewer than six classes
            continue
        key = f"{IN_WANDB.get(protocol, protocol)}/{split}_{name}"
        numbers[key] = mean = statistics.mean(values)
        if len(scores) > 1:
            numbers[f"{key}_std"] = spread = statistics.stdev(values)
            _say(f"{name} {mean:.4f} ± {spread:.4f} (standard deviation of {len(seeds)} seeds)")
    if wandb is not None:
        about = {"split": split, "seeds": seeds, **fields}
        log_to_wandb(pretrained, protocol, numbers, about, wandb)
    return scores


def log_to_wandb(
    pretrained: Pretrained,
    protocol: str,
    numbers: dict[str, float],
    about: dict[str, Any],
    asked: Mode,
) -> None:
    """Logs an evaluation as a W&B run, if pretraining was one.

    Args:
        pretrained: the checkpoint that was evaluated, and its run.
        protocol: its name, as in `linear-lbfgs`.
        numbers: by name; those of another data set than the run's own get its name in front.
        about: further entries of the W&B run's config, `split` among them.
        asked: online, offline, off, or auto.
    """
    run = pretrained.run
    if run is None or not is_rank_zero():
        return
    folder = pretrained.folder("results")
    other = "" if folder == run.results else f"{folder.name}/"
    named = {f"{other}{name}": value for name, value in numbers.items()}
    about |= {"dataset": pretrained.dataset, "checkpoint": pretrained.checkpoint}
    log_evaluation(run, protocol, named, about, asked)


def _say(line: str) -> None:
    if is_rank_zero():
        sys.stdout.write(f"{line}\n")
