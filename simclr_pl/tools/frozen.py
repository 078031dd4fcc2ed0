"""What commands that evaluate a frozen encoder share: its checkpoint, its data, its results."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from simclr_pl.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.errors import UserError
from simclr_pl.evaluate.features import accelerator, encode
from simclr_pl.evaluate.scoring import Rows, Score, labelled
from simclr_pl.model.checkpoint import KEY, load_encoder, read_checkpoint
from simclr_pl.run.arguments import data_of, read_config
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.results import write_result
from simclr_pl.run.wandb import append_to_summary


@dataclass(frozen=True)
class DataChoice:
    """Another data set than the run's own (transfer).

    Args:
        dataset: digits, fashion_mnist, cifar10, cifar100, stl10, folder, or npz.
        root: folder of the data; for `npz` the file.
    """

    dataset: str | None = None
    root: str | None = None


class Frozen(NamedTuple):
    """A pretrained encoder in front of data, as that encoder was trained to see images.

    Attributes:
        encoder: in eval mode, on the GPU where there is one.
        data: set up; crops and flips are the recipe's, colours are left alone.
        checkpoint: the file.
        seed: of pretraining.
        epoch: after how many the checkpoint was written; `None` for an exported file.
        results: folder for what is found.
    """

    encoder: nn.Module
    data: ContrastiveDataModule
    checkpoint: Path
    seed: int
    epoch: int | None
    results: Path

    @property
    def device(self) -> torch.device:
        """Of the encoder."""
        return next(self.encoder.parameters()).device

    def rows(self, split: Split) -> Rows:
        """Labelled features of a split's clean images, on the encoder's device."""
        encoded = encode(self.encoder, self.data, split)
        self.data.teardown()  # processes that have decoded it
        return labelled(encoded, split).to(self.device)


def open_frozen(
    checkpoint: str | None, run_dir: str | None, config: list[str] | None, chosen: DataChoice
) -> Frozen:
    """Finds a checkpoint's run and data.

    Args:
        checkpoint: a training checkpoint or an exported encoder.
        run_dir: a run, instead: its last checkpoint.
        config: files that give the data, later ones winning (default: the run's own).
        chosen: another data set.

    Raises:
        UserError: not one of checkpoint and run directory; no such file; a broken one; nothing
            that says what the data is; data with other channels.
    """
    if (checkpoint is None) == (run_dir is None):
        raise UserError("give --checkpoint FILE or --run_dir RUN, one of them")
    path = Path(checkpoint) if checkpoint else RunDirectory(Path(str(run_dir))).last_checkpoint
    content = read_checkpoint(path)
    encoder = load_encoder(path)
    home = _home(path)
    own = [home.config] if home else []
    configs = [Path(file) for file in config] if config else own
    if not configs and chosen.dataset is None:
        raise UserError(
            f"there is no config.yaml with {path} that says what data to evaluate on: "
            "give --config FILE, or --data.dataset NAME"
        )
    data = _data_as_trained(configs, chosen, content[KEY])
    epoch = content.get("epoch")
    results = (home.path if home else path.parent) / "results"
    if own and data.dataset != _dataset(own[0]):
        results /= data.dataset  # beside the run's own numbers, not over them
    return Frozen(
        encoder.to(accelerator()),
        data,
        path,
        int(content[KEY]["seed"]),
        None if epoch is None else int(epoch) + 1,
        results,
    )


def report(
    frozen: Frozen,
    protocol: str,
    split: Split,
    seeds: list[int],
    evaluate: Callable[[int], Score],
    **fields: Any,
) -> list[Score]:
    """Evaluates with each seed, writes a result for each, and prints them with mean and spread.

    Mean and spread go into the summary of the run's W&B run as well.

    Args:
        frozen: what is evaluated.
        protocol: its name, which starts the results' names.
        split: what is scored.
        seeds: of evaluation.
        evaluate: the score with a seed.
        fields: further entries of the results.
    """
    out = sys.stdout.write
    out(f"{protocol}, on frozen features, scored on the {split} split of {frozen.data.dataset}\n")
    scores = []
    for seed in seeds:
        score = evaluate(seed)
        path = write_result(
            frozen.results,
            protocol=protocol,
            split=split,
            seed=seed,
            top1=score.top1,
            top5=score.top5,
            **score.chosen,
            **fields,
            epoch=frozen.epoch,
            dataset=frozen.data.dataset,
            pretraining_seed=frozen.seed,
            checkpoint=frozen.checkpoint,
        )
        chosen = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in score.chosen.items())
        out(f"seed {seed}: top1 {score.top1:.4f}, top5 {score.top5:.4f} ({chosen}) in {path}\n")
        scores.append(score)
    frozen.data.teardown()
    numbers: dict[str, float] = {}
    for name in ("top1", "top5"):
        values = [getattr(score, name) for score in scores]
        numbers[f"{protocol}/{split}_{name}"] = mean = statistics.mean(values)
        if len(scores) > 1:
            numbers[f"{protocol}/{split}_{name}_std"] = spread = statistics.stdev(values)
            out(f"{name} {mean:.4f} ± {spread:.4f} (standard deviation of {len(seeds)} seeds)\n")
    _append(frozen, numbers)
    return scores


def _append(frozen: Frozen, numbers: dict[str, float]) -> None:
    """Tells the run's W&B run, where there is one; another data set's numbers say which it is."""
    home = _home(frozen.checkpoint)
    if home is not None:
        other = f"{frozen.data.dataset}/" if frozen.results != home.results else ""
        append_to_summary(home, {f"{other}{name}": value for name, value in numbers.items()})


def check_seeds(seeds: list[int] | None) -> None:
    """`--seeds` without a number behind it.

    Raises:
        UserError: an empty list.
    """
    if seeds is not None and not seeds:
        raise UserError("seeds is empty: give one or more, as in --seeds 0 1 2, or leave it out")


def _home(checkpoint: Path) -> RunDirectory | None:
    """The run that a checkpoint lies in: in its folder for checkpoints, or beside config.yaml."""
    for folder in (checkpoint.absolute().parent.parent, checkpoint.absolute().parent):
        if RunDirectory(folder).config.is_file():
            return RunDirectory(folder)
    return None


def _dataset(config: Path) -> str | None:
    name = (read_config(config).get("data") or {}).get("dataset")
    return None if name is None else str(name)


def _data_as_trained(
    configs: list[Path], chosen: DataChoice, about: dict[str, Any]
) -> ContrastiveDataModule:
    """The data, with size and statistics of the images that the encoder was trained on."""
    # Colours are left alone: the protocols know clean images, and crops with flips.
    overrides: dict[str, Any] = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    if chosen.dataset is not None:
        overrides |= {"dataset": chosen.dataset, "mean": None, "std": None}
    if chosen.root is not None:
        overrides |= {"root": chosen.root}
    overrides |= {"image_size": about["image_size"]}
    data = data_of(configs, overrides)
    channels = about["encoder"]["channels"]
    if data.channels != channels:
        raise UserError(
            f"{data.dataset} has images of {data.channels} channel{'s'[: data.channels != 1]}, but "
            f"the encoder was trained on {channels}: use data like the encoder's, or an encoder "
            "trained on such images"
        )
    trained = {name: tuple(about[name]) for name in ("mean", "std")}
    if any(getattr(data, name) != value for name, value in trained.items()):
        data = data_of(configs, overrides | trained)
    return data
