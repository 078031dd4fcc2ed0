"""`knn`: what an image's nearest neighbours say of it, with nothing trained."""

from typing import Literal

from simclr_pl.commandline.call import call
from simclr_pl.commandline.over_seeds import freeze
from simclr_pl.commandline.target import DataChoice, check_seeds, find_pretrained
from simclr_pl.protocols.knn import KS, TEMPERATURES, evaluate_knn
from simclr_pl.protocols.scoring import Rows, Score, check_above_zero
from simclr_pl.tracking.wandb_mode import Mode


def knn(
    *,
    checkpoint: str | None = None,
    run_dir: str | None = None,
    config: list[str] | None = None,
    data: DataChoice = DataChoice(),  # noqa: B008 - frozen
    split: Literal["val", "test"] = "test",
    label_fraction: float = 1.0,
    baseline: str | None = None,
    seeds: list[int] | None = None,
    k: list[int] | None = None,
    temperature: list[float] | None = None,
    wandb: Mode = "auto",
) -> list[Score]:
    """Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018).

    The k training images nearest in cosine similarity vote, each with weight exp(similarity /
    temperature). k and temperature are chosen on a tenth of train's labelled images
    (class-balanced, or whole groups where images have groups) against the rest; then all of them
    vote, and the split is scored once. Accuracies are fractions from 0 to 1.

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
        seeds: of the tenth that chooses (default: the run's seed).
        k: numbers of neighbours to choose from (default: 1, 5, 10, 20, 50, 100, 200).
        temperature: temperatures to choose from (default: 0.03, 0.07, 0.2).
        wandb: Weights & Biases; auto is online when logged in, else offline.

    Returns:
        A score for each seed.

    Raises:
        UserError: for whatever can be put right: a checkpoint that cannot be read, no labels,
            other channels, a value out of its range.
    """
    check_seeds(seeds)
    ks = tuple(KS if k is None else k)
    temperatures = tuple(TEMPERATURES if temperature is None else temperature)
    check_above_zero("k", ks)
    check_above_zero("temperature", temperatures)
    frozen = freeze(find_pretrained(checkpoint, run_dir, config, data), baseline)

    def evaluate(train: Rows, scored: Rows, seed: int) -> Score:
        return evaluate_knn(train, scored, frozen.data.num_classes, seed, ks, temperatures)

    return frozen.score("knn", split, label_fraction, seeds, evaluate, wandb)


def run_cli(args: list[str]) -> None:
    """The command."""
    call(knn, args)
