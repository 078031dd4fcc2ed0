"""Scores of all seeds: written as results, printed with mean and spread, told to W&B."""

import statistics
import sys
from collections.abc import Callable
from typing import Any

from simclr_pl.commandline.target import Pretrained
from simclr_pl.core.data.datamodule import Split
from simclr_pl.protocols.scoring import Score
from simclr_pl.run.directory import is_rank_zero
from simclr_pl.run.results import write_result
from simclr_pl.tracking.evaluations import append_to_summary, tell
from simclr_pl.tracking.wandb_mode import Mode

IN_SUMMARY = {"knn": "knn_chosen"}
"""Names in W&B where a protocol's own is taken: `knn/val_top1` is the monitor's, of k = 20."""


TRAININGS = ("finetune", "supervised")
"""How the protocols of `finetune` begin."""


def report(
    pretrained: Pretrained,
    protocol: str,
    split: Split,
    seeds: list[int],
    evaluate: Callable[[int], Score],
    how: str = "on frozen features",
    wandb: Mode = "auto",
    **fields: Any,
) -> list[Score]:
    """Evaluates with each seed, writes a result for each, and prints them with mean and spread.

    Mean and spread go to W&B as well. Of several ranks that evaluate together, rank 0 alone writes
    and prints.

    Args:
        pretrained: what is evaluated.
        protocol: its name, which starts the results' names.
        split: what is scored.
        seeds: of evaluation.
        evaluate: the score with a seed.
        how: what was done to the encoder, in words.
        wandb: whether W&B is told, and where.
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
        key = f"{IN_SUMMARY.get(protocol, protocol)}/{split}_{name}"
        numbers[key] = mean = statistics.mean(values)
        if len(scores) > 1:
            numbers[f"{key}_std"] = spread = statistics.stdev(values)
            _say(
                f"{name} {mean:.4f} \u00b1 {spread:.4f} (standard deviation of {len(seeds)} seeds)"
            )
    tell_wandb(pretrained, protocol, numbers, {"split": split, "seeds": seeds, **fields}, wandb)
    return scores


def tell_wandb(
    pretrained: Pretrained,
    protocol: str,
    numbers: dict[str, float],
    about: dict[str, Any],
    asked: Mode = "auto",
) -> None:
    """Tells W&B, if pretraining was a W&B run: in that run's summary, and as a run of its own.

    A fine-tuning has been a W&B run of its own from its first step.

    Args:
        pretrained: what was evaluated.
        protocol: its name, as in `linear-lbfgs`.
        numbers: by name; those of another data set than the run's own get its name in front.
        about: what they hang on beside checkpoint and data set, `split` among it.
        asked: online, offline, off, or auto.
    """
    run = pretrained.run
    if run is None or not is_rank_zero():
        return
    folder = pretrained.folder("results")
    other = "" if folder == run.results else f"{folder.name}/"
    named = {f"{other}{name}": value for name, value in numbers.items()}
    if protocol.startswith(TRAININGS):
        append_to_summary(run, named, asked)
    else:
        known = {"dataset": pretrained.dataset, "checkpoint": pretrained.checkpoint}
        tell(run, protocol, named, about | known, asked)


def _say(line: str) -> None:
    if is_rank_zero():
        sys.stdout.write(f"{line}\n")
