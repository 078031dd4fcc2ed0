"""Options beyond Lightning's own, and Lightning's options that are refused."""

import argparse
import sys
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from simclr_pl.commandline.call import OneSentence
from simclr_pl.commandline.help import help_of
from simclr_pl.commandline.shorthand import with_wandb_mode
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import name_of
from simclr_pl.monitors.health import HealthMonitor
from simclr_pl.monitors.knn import KNNMonitor
from simclr_pl.monitors.linear import LinearEvaluation
from simclr_pl.monitors.probe import OnlineProbe
from simclr_pl.pictures.gallery import Gallery
from simclr_pl.run.checkpoints import SaveCheckpoint
from simclr_pl.run.yaml_file import no_mapping
from simclr_pl.tracking.wandb import WandbChoice
from simclr_pl.writing import as_folder


class Parser(OneSentence, LightningArgumentParser):
    """Lightning's parser, whose errors are sentences and whose `wandb` may be its mode alone."""

    only: str | None = None
    """The group of options that `--help` is asked for."""

    hints: ClassVar = {
        "--seeds": "list[int]",
        **dict.fromkeys(("--resume", "--tensorboard", "--from_scratch", "--head_only"), "bool"),
    }

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """A line or two for each option."""
        return help_of(self, self.only)

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Parses, with `--wandb off` as `--wandb.mode off`."""
        given = with_wandb_mode(sys.argv[1:] if args is None else args)
        return super().parse_args(given, *more, **options)


def add_monitors(parser: LightningArgumentParser) -> None:
    """Adds the groups of the callbacks that watch a pretraining."""
    parser.add_lightning_class_args(OnlineProbe, "probe")
    parser.add_lightning_class_args(KNNMonitor, "knn")
    parser.add_lightning_class_args(HealthMonitor, "health")
    parser.add_lightning_class_args(LinearEvaluation, "linear")
    parser.add_lightning_class_args(Gallery, "pictures")
    parser.add_lightning_class_args(SaveCheckpoint, "checkpoint")


def add_run_options(parser: LightningArgumentParser, run_dir: str, resume: str) -> None:
    """Adds what belongs to a run: its directory, its loggers, and defaults of its Trainer.

    Args:
        parser: of the command.
        run_dir: help of `--run_dir`.
        resume: help of `--resume`.
    """
    parser.add_argument("--run_dir", type=str | None, default=None, help=run_dir)
    parser.add_argument("--resume", type=bool, default=False, help=resume)
    parser.add_argument("--wandb", type=WandbChoice, default=WandbChoice())
    # (Its own help is of files with options. The group's title says what it takes here.)
    parser._option_string_actions["--wandb"].help = argparse.SUPPRESS
    files = "whether numbers and pictures go into RUN/tensorboard too"
    parser.add_argument("--tensorboard", type=bool, default=False, help=files)
    without = ("use_distributed_sampler", "enable_model_summary")
    parser.set_defaults({f"trainer.{name}": False for name in without})
    parser.set_defaults({"trainer.num_sanity_val_steps": 0})


def check_values(parser: LightningArgumentParser, config: Any) -> None:
    """Looks at values that the parser has let through.

    Args:
        parser: of the command.
        config: what it has read.

    Raises:
        UserError: a list or a word where keys belong; a seed out of range; no name at all.
    """
    for name, default in vars(parser.get_defaults()).items():
        value = config.get(name)
        if isinstance(default, Namespace) and not isinstance(value, Namespace):
            raise UserError(no_mapping(name, value))
    seed = config.seed_everything
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {seed}, but must be from 0 to {2**32 - 1}")
    for group in ("model", "data"):
        own = config[group].seed
        if own is not None and not -(2**63) <= own < 2**63:
            raise UserError(f"{group}.seed is {own}, but must be a number of 64 bits")
    if config.run_dir is not None and not config.run_dir.strip():
        raise UserError("run_dir is empty: give a folder, or leave it out")


def refuse(trainer: Any) -> None:
    """Looks at options that no Trainer can be made of; `check_trainer` looks at the Trainer.

    Args:
        trainer: the configuration's part of that name.

    Raises:
        UserError: one that has no meaning for a run in its directory.
    """
    if trainer.devices in (0, "0"):
        raise UserError("trainer.devices is 0, but must be at least 1")
    if trainer.barebones:
        raise UserError(
            "trainer.barebones would leave a run without numbers and checkpoints: leave it out "
            "(bench measures how fast a recipe trains)"
        )
    if trainer.enable_checkpointing is False:
        raise UserError(
            "trainer.enable_checkpointing false would lose the run: leave it out; "
            "checkpoint.every_n_epochs says how often last.ckpt is written"
        )


def config_name(config: Any) -> str:
    """The name of a run's folder: its first configuration file's, or its data set's."""
    files = as_list(config.get("config"))
    return Path(str(files[0])).stem if files else as_folder(name_of(config.data.dataset))


def as_list(value: Any) -> list[Any]:
    """A list of an option that Lightning takes as one value or as several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
