"""`linear`: what a linear classifier makes of a frozen encoder's features."""

from typing import Literal

import torch
from torch import Tensor

from simclr_pl.commandline.call import call
from simclr_pl.commandline.over_seeds import Frozen, freeze
from simclr_pl.commandline.target import DataChoice, check_seeds, find_pretrained
from simclr_pl.core.errors import UserError
from simclr_pl.images.groups import Groups
from simclr_pl.images.splits import draw_fraction
from simclr_pl.protocols.features import encode_crops
from simclr_pl.protocols.linear import (
    LEARNING_RATES,
    WEIGHT_DECAYS,
    Settings,
    Source,
    fit_linear,
)
from simclr_pl.protocols.logistic import evaluate_logistic
from simclr_pl.protocols.scoring import Rows, Score, check_above_zero
from simclr_pl.tracking.wandb_mode import Mode


def linear(
    *,
    checkpoint: str | None = None,
    run_dir: str | None = None,
    config: list[str] | None = None,
    data: DataChoice = DataChoice(),  # noqa: B008 - frozen
    split: Literal["val", "test"] = "test",
    label_fraction: float = 1.0,
    baseline: str | None = None,
    solver: Literal["sgd", "lbfgs"] = "sgd",
    augment: bool = False,
    seeds: list[int] | None = None,
    epochs: int = Settings().epochs,
    learning_rates: list[float] | None = None,
    weight_decays: list[float] | None = None,
    wandb: Mode = "auto",
) -> list[Score]:
    """Linear evaluation: a linear classifier on frozen features, the protocol papers report.

    A grid of learning rates and weight decays is trained on nine tenths of train's labelled
    images, chosen on the tenth left out (class-balanced, or whole groups where images have groups),
    trained again on all of them, and the split is scored once. The encoder stays as it is, in eval
    mode; images are sized and normalised as it was trained. Accuracies are fractions from 0 to 1.

    Args:
        checkpoint: a training checkpoint, or an exported encoder.
        run_dir: directory of a run, instead of a checkpoint: its last one.
        config: configuration files that give the data (default: the run's own config.yaml).
        data: another data set than the run's (transfer).
        split: what to score; test is for the end.
        label_fraction: share of each class's labelled training images, above 0 and at most 1; the
            same images as `finetune` takes with that seed.
        baseline: evaluate something else in the encoder's place: pixels, random (the weights that
            pretraining began with), imagenet (those that its library publishes), or a file of
            weights.
        solver: sgd, or lbfgs (L2-regularised logistic regression, the paper's transfer protocol).
        augment: train on fresh crops and flips in each epoch, as the paper does on ImageNet; each
            epoch then is a pass through the encoder, twice (to choose, and to train again). The
            head is chosen on clean images, as it is scored.
        seeds: of the batches' order and of the tenth that chooses (default: the run's seed).
        epochs: passes over the features (more of a small data set: 1,000 steps at least, unless
            augmented).
        learning_rates: to choose from, each for a batch of 256.
        weight_decays: to choose from.
        wandb: Weights & Biases; auto is online when logged in, else offline.

    Returns:
        A score for each seed.

    Raises:
        UserError: for whatever can be put right: a checkpoint that cannot be read, no labels,
            other channels, an empty grid.
    """
    check_seeds(seeds)
    rates = tuple(LEARNING_RATES if learning_rates is None else learning_rates)
    decays = tuple(WEIGHT_DECAYS if weight_decays is None else weight_decays)
    check_above_zero("learning_rates", rates)
    if not decays or not min(decays) >= 0:
        raise UserError(f"weight_decays is {list(decays)}, but must be numbers of 0 or more")
    if epochs < 1:
        raise UserError(f"epochs is {epochs}, but must be at least 1")
    if augment and solver == "lbfgs":
        raise UserError(
            "lbfgs takes the same features in each step: leave out --augment, or use --solver sgd"
        )
    frozen = freeze(find_pretrained(checkpoint, run_dir, config, data), baseline)
    settings = Settings(rates, decays, epochs, 0 if augment else Settings().steps)

    def evaluate(train: Rows, scored: Rows, seed: int) -> Score:
        classes, of_seed = frozen.data.num_classes, settings._replace(seed=seed)
        if solver == "lbfgs":
            cpu = torch.device("cpu")
            return evaluate_logistic(train.to(cpu), scored.to(cpu), classes, seed)
        crops = _crops(frozen, label_fraction, seed) if augment else lambda _: train.features
        fitted = fit_linear(crops, train.labels, classes, of_seed, train.features, train.groups)
        return fitted.score(scored)

    name = "linear-augmented" if augment else "linear" if solver == "sgd" else "linear-lbfgs"
    scores = frozen.score(name, split, label_fraction, seeds, evaluate, wandb, solver=solver)
    frozen.data.teardown()
    return scores


def _crops(frozen: Frozen, fraction: float, seed: int) -> Source:
    """Fresh features of that share of the labelled training images for each epoch."""
    train = frozen.data.splits.train
    rows = draw_fraction(train.labels, fraction, seed, Groups.of(train))
    frozen.data.teardown()  # workers that decode have the seed from their start
    frozen.data.views.seed = seed

    def of_epoch(epoch: int) -> Tensor:
        return encode_crops(frozen.encoder, frozen.data, rows, epoch).float()

    return of_epoch


def run_cli(args: list[str]) -> None:
    """The command."""
    call(linear, args)
