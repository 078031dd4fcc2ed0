"""`fit`, `validate`, `test`, `predict`: LightningCLI, wired to a run directory."""

import itertools
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from simclr_pl.data.datamodule import ContrastiveDataModule
from simclr_pl.errors import UserError
from simclr_pl.evaluate.features import FeatureWriter
from simclr_pl.evaluate.health import HealthMonitor
from simclr_pl.evaluate.knn import KNNMonitor
from simclr_pl.evaluate.linear_callback import LinearEvaluation
from simclr_pl.evaluate.probe import OnlineProbe
from simclr_pl.model.checkpoint import fit_weights, read_checkpoint
from simclr_pl.model.simclr import SimCLR
from simclr_pl.run.arguments import OneSentence, read_config
from simclr_pl.run.checkpoints import AtomicCheckpointIO, SaveCheckpoint, StopOnNaN
from simclr_pl.run.directory import RunDirectory, choose_directory, is_rank_zero
from simclr_pl.run.metrics import MetricsFile
from simclr_pl.run.progress import Progress
from simclr_pl.run.recipe import check_same_recipe, portable
from simclr_pl.run.results import write_result
from simclr_pl.run.table import DerivedTable
from simclr_pl.run.wandb import Mode, append_to_summary, build_logger, resolve_mode
from simclr_pl.tools.gallery import Gallery


class Parser(OneSentence, LightningArgumentParser):
    """Lightning's parser, whose errors are sentences."""


class _SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration, without what belongs to this machine alone."""

    def __init__(self, parser: Any, config: Any, path: Path) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.path = path

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        text = yaml.safe_dump(portable(self.parser, self.config), sort_keys=False)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self.path)


class _InitFrom(L.Callback):
    """Starts a new run from the weights of another, of the same architecture."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        fit_weights(pl_module, read_checkpoint(self.path)["state_dict"], self.path)


class SimCLRCLI(LightningCLI):
    """LightningCLI with a run directory, and loggers and callbacks that write into it."""

    run: RunDirectory | None = None
    began = False
    resume_from: Path | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's four, but `fit` resumes by --resume alone."""
        table = LightningCLI.subcommands()
        return {**table, "fit": table["fit"] | {"ckpt_path", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to a run."""
        parser.add_lightning_class_args(OnlineProbe, "probe")
        parser.add_lightning_class_args(KNNMonitor, "knn")
        parser.add_lightning_class_args(HealthMonitor, "health")
        parser.add_lightning_class_args(LinearEvaluation, "linear")
        parser.add_lightning_class_args(Gallery, "pictures")
        parser.add_lightning_class_args(SaveCheckpoint, "checkpoint")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="folder for everything of this run (default: runs/<config name>/<time>)",
        )
        parser.add_argument(
            "--resume",
            action="store_true",
            help="continue the run in --run_dir, or start it where there is none yet",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="checkpoint whose weights a new run starts from",
        )
        parser.add_argument(
            "--wandb",
            type=Mode,
            default="auto",
            help="Weights & Biases; auto is online when logged in, else offline",
        )
        parser.set_defaults(
            {
                "trainer.max_epochs": 100,
                "trainer.num_sanity_val_steps": 0,
                "trainer.use_distributed_sampler": False,
                "trainer.enable_model_summary": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and looks at a checkpoint before Lightning trips over it."""
        super().parse_arguments(parser, args)
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path:
            read_checkpoint(path)
        elif self.config.subcommand != "fit":
            raise UserError(
                f"{self.config.subcommand} needs a trained model: give --run_dir RUN, "
                "or --config and --ckpt_path"
            )

    # Before ---------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Refuses what would change meaning, then decides on the run directory."""
        config = self.config[str(self.subcommand)]
        _refuse(config.trainer)
        self.run = choose_directory(config.run_dir, _config_name(config))
        if config.trainer.fast_dev_run:
            self.run = None
        elif self.subcommand == "fit":
            self._claim(self.run, config)

    def _claim(self, run: RunDirectory, config: Any) -> None:
        if config.resume and config.run_dir is None:
            raise UserError("--resume needs --run_dir, the directory of the run to continue")
        if config.init_from:
            read_checkpoint(config.init_from)
        if config.resume and run.last_checkpoint.exists():
            read_checkpoint(run.last_checkpoint)
            check_same_recipe(run, portable(self._parser("fit"), config))
            self.resume_from = run.last_checkpoint
        run.claim(resume=config.resume)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds loggers, callbacks and the way checkpoints are written."""
        config = self.config_init[str(self.subcommand)]
        fast = bool(config.trainer.fast_dev_run)
        extra: list[L.Callback] = [StopOnNaN()]
        config.checkpoint.path = self.run.last_checkpoint if self.run else None
        if self.subcommand == "fit":  # before the bar, which would share its first line
            extra.append(DerivedTable(str(self.run.path) if self.run else "none (fast_dev_run)"))
        if config.trainer.enable_progress_bar is not False:
            extra.append(Progress())
        if self.subcommand == "fit":
            extra.append(_Began(self))
            if config.init_from and self.resume_from is None:
                extra.append(_InitFrom(config.init_from))
        if self.subcommand == "predict" and self.run is not None:
            extra.append(FeatureWriter(self._features_path()))
        self.trainer_defaults["callbacks"] = extra
        if fast or self.subcommand != "fit" or self.run is None:
            self.save_config_callback = None
            return super().instantiate_trainer(logger=False, **kwargs)
        self.save_config_callback, self.save_config_kwargs = _SaveConfig, {"path": self.run.config}
        plugins = [*_as_list(config.trainer.plugins), AtomicCheckpointIO()]
        return super().instantiate_trainer(
            logger=self._loggers(self.run, config),
            default_root_dir=str(self.run.path),
            plugins=plugins,
            **kwargs,
        )

    def _loggers(self, run: RunDirectory, config: Any) -> list[Any]:
        step = None
        if self.resume_from is not None:
            step = int(read_checkpoint(self.resume_from)["global_step"])
        loggers: list[Any] = [MetricsFile(run.metrics, step)]
        given = config.trainer.logger
        loggers += [] if isinstance(given, bool) else _as_list(given)
        if is_rank_zero():
            mode = resolve_mode(config.wandb)
            logger = build_logger(mode, run, "simclr_pl", f"{run.path.parent.name}/{run.path.name}")
            loggers += [] if logger is None else [logger]
        return loggers

    # The four commands ----------------------------------------------------------------------------

    def fit(self, **kwargs: Any) -> None:
        """Trains; resumes where that was asked for and there is something to resume."""
        path = str(self.resume_from) if self.resume_from else None
        try:
            self.trainer.fit(ckpt_path=path, weights_only=True, **kwargs)
            if path and not self.began and self.trainer.is_global_zero:
                sys.stdout.write(
                    f"nothing left to train: {path} is at step {self.trainer.global_step}, the end "
                    "of this recipe; a larger --trainer.max_epochs goes on\n"
                )
        except SystemExit:  # Lightning's answer to Ctrl-C
            if not self.trainer.interrupted or self.run is None:
                raise
            raise KeyboardInterrupt(
                f"at step {self.trainer.global_step}: the same command with --resume --run_dir "
                f"{self.run.path} continues"
            ) from None

    def validate(self, **kwargs: Any) -> None:
        """Scores the validation split."""
        self._score("val", self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Scores the test split."""
        self._score("test", self.trainer.test, kwargs)

    def _score(self, split: str, evaluate: Any, kwargs: dict[str, Any]) -> None:
        numbers = evaluate(**{**kwargs, "verbose": False, "weights_only": True})[0]
        if not self.trainer.is_global_zero:
            return
        checkpoint = Path(kwargs["ckpt_path"])
        fields = {
            "loss": numbers[f"{split}/loss"],
            "top1": numbers.get(f"probe/{split}_top1"),
            "top5": numbers.get(f"probe/{split}_top5"),
        }
        out = sys.stdout.write
        for name, value in fields.items():
            out(f"{split} {name}: {'no labels' if value is None else f'{value:.4f}'}\n")
        if self.run is not None:
            path = write_result(
                _home(checkpoint, self.run).results,
                protocol="probe",
                split=split,
                seed=self.model.seed,
                **fields,
                epoch=int(read_checkpoint(checkpoint)["epoch"]) + 1,
                dataset=self.datamodule.dataset,
                checkpoint=checkpoint,
            )
            out(f"(online probe on frozen features of {checkpoint}) written to {path}\n")
            if self.config[str(self.subcommand)].wandb != "off":
                append_to_summary(_home(checkpoint, self.run), numbers)

    def predict(self, **kwargs: Any) -> None:
        """Writes features, labels and indices of `data.predict_split`."""
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})
        if self.trainer.is_global_zero and self.run is not None:
            sys.stdout.write(f"features, labels and index written to {self._features_path()}\n")

    def _features_path(self) -> Path:
        config = self.config[str(self.subcommand)]
        assert self.run is not None
        folder = _home(Path(config.ckpt_path), self.run).path
        return folder / f"features-{config.data.predict_split}.npz"


class _Began(L.Callback):
    """Notes that step 0 was reached: from here on the run directory stays."""

    def __init__(self, cli: SimCLRCLI) -> None:
        self.cli = cli

    def on_train_batch_start(self, *args: Any) -> None:
        self.cli.began = True


def _home(checkpoint: Path, chosen: RunDirectory) -> RunDirectory:
    """The run a checkpoint belongs to, which is where its results go."""
    folder = checkpoint.parent.parent
    return RunDirectory(folder) if RunDirectory(folder).config.exists() else chosen


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _config_name(config: Any) -> str:
    files = _as_list(config.get("config"))
    return Path(str(files[0])).stem if files else str(config.data.dataset)


def _refuse(trainer: Any) -> None:
    """Flags of Lightning that would silently train something else."""
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            "trainer.accumulate_grad_batches would not give a contrastive batch its negatives: set "
            "data.batch_size to the batch you want, and model.micro_batch_size to what fits in "
            "memory"
        )
    if trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches is 0: give at least 1 batch, or leave it out")
    if trainer.sync_batchnorm:
        raise UserError(
            "trainer.sync_batchnorm is not used: batch norm is global by the recipe's own key, "
            "model.global_batch_norm (true unless you turn it off)"
        )


def _split_equals(arg: str) -> list[str]:
    """`--run_dir=RUN` is `--run_dir RUN`."""
    return arg.split("=", 1) if re.match(r"--(run_dir|config|ckpt_path)=", arg) else [arg]


def _with_run(args: list[str]) -> list[str]:
    """`validate --run_dir RUN` means that run's configuration and last checkpoint."""
    args = [part for arg in args for part in _split_equals(arg)]
    command, *rest = args
    if command == "fit" or rest[-1:] == ["--run_dir"]:
        return args
    if "--run_dir" not in rest:
        return [command, *_own_config(rest), *rest]
    run = RunDirectory(Path(rest[rest.index("--run_dir") + 1]))
    if not run.config.is_file():
        raise UserError(f"{run.path} holds no run: give the directory of a run as --run_dir")
    if not any(a.startswith("--ckpt_path") for a in rest):
        rest = [*rest, "--ckpt_path", str(run.last_checkpoint)]
    return [command, "--config", str(run.config), *rest]


def _own_config(rest: list[str]) -> list[str]:
    """A run's checkpoint alone brings its run's configuration: no other would score that run."""
    if "--config" in rest or "-c" in rest or "--ckpt_path" not in rest[:-1]:
        return []
    checkpoint = Path(rest[rest.index("--ckpt_path") + 1])
    config = RunDirectory(checkpoint.parent.parent).config
    return ["--config", str(config)] if config.is_file() else []


def run_cli(args: list[str]) -> None:
    """Runs one of the four commands.

    Args:
        args: command and options, as on the command line.

    Raises:
        UserError: for whatever the user can put right.
    """
    _quieten()
    args = _with_run(args)
    for flag, value in itertools.pairwise(args):
        if flag in ("-c", "--config"):
            read_config(Path(value))
    sys.argv = [sys.argv[0], *args]
    # A reference that outlives a constructor which raises.
    cli = SimCLRCLI.__new__(SimCLRCLI)
    try:
        cli.__init__(  # type: ignore[misc]
            SimCLR,
            ContrastiveDataModule,
            parser_class=Parser,
            seed_everything_default=0,
            save_config_callback=None,
            # Hyperparameters are plain arguments: how they were parsed need not be recorded.
            load_from_checkpoint_support=False,
            # The recipe has one place for the optimiser, and keys have one spelling.
            auto_configure_optimizers=False,
            parser_kwargs={"allow_abbrev": False, "prog": "python -m simclr_pl"},
        )
    except BaseException:
        if cli.run is not None and not cli.began and cli.subcommand == "fit":
            cli.run.discard()
        raise


def _quieten() -> None:
    """Drops lines that say nothing to a user of this package, and no others."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning's use of a renamed torch class.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Steps are counted over epochs: short epochs are logged all the same.
    warnings.filterwarnings("ignore", message="The number of training batches")
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")
