"""`fit`, `validate`, `test`, `predict`, `bench`: LightningCLI, wired to a run directory."""

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.profilers import Profiler

from simclr_pl.cluster.out_of_memory import OutOfMemory, explained
from simclr_pl.cluster.requeue import job
from simclr_pl.cluster.signals import StopRequest
from simclr_pl.commandline.help import wanted_group
from simclr_pl.commandline.options import (
    Parser,
    add_options,
    as_list,
    check_values,
    config_name,
    refuse,
)
from simclr_pl.commandline.progress import Progress
from simclr_pl.commandline.shorthand import spelled_out
from simclr_pl.commandline.trainer_options import refused_by_lightning
from simclr_pl.commandline.training import Session, quieten
from simclr_pl.commands.bench.bench import bench, on_one_device
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.checkpoint import KEY, check_stem, fit_weights, read_checkpoint
from simclr_pl.core.model.refused import check_trainer
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.core.paths import expanded
from simclr_pl.core.speed.compiler import check_compiler
from simclr_pl.lightning_internals import parser_of
from simclr_pl.monitors.throughput import Throughput
from simclr_pl.protocols.features import FeatureWriter
from simclr_pl.protocols.start_weights import start_model
from simclr_pl.protocols.weight_files import read_weights
from simclr_pl.run.best import keep_in, say_unseen
from simclr_pl.run.checkpoints import AtomicCheckpointIO, StopOnNaN
from simclr_pl.run.config import portable, save_config
from simclr_pl.run.derived import DerivedTable
from simclr_pl.run.directory import RunDirectory, choose_directory, run_of
from simclr_pl.run.metrics import MetricsFile
from simclr_pl.run.results import write_result
from simclr_pl.run.seen import kept_by, say_missing, sees_own_data
from simclr_pl.run.yaml_file import read_config
from simclr_pl.tracking.artifacts import LogCheckpoints
from simclr_pl.tracking.evaluations import tell
from simclr_pl.tracking.loggers import Tracking
from simclr_pl.tracking.tensorboard import check_tensorboard


class _Trainer(L.Trainer):
    def bench(self, out: str | None = None, seconds: float = 20.0) -> None:
        """Measures how fast a recipe trains on this machine, and says what to change.

        Args:
            out: a JSON file for what was measured (default: none is written).
            seconds: how long training steps are measured, about; slow steps take longer.
        """


class _SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration, without what belongs to this machine alone."""

    def __init__(self, parser: Any, config: Any, run: RunDirectory, recipe: dict[str, Any]) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.run, self.recipe = run, recipe

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        save_config(self.run, self.recipe)


class _InitFrom(L.Callback):
    """Starts a new run from weights: all of another run's, or an encoder's from anywhere."""

    def __init__(self, source: str) -> None:
        self.weights = read_weights(source)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SimCLR)
        if pl_module.pretrained:
            raise UserError(
                "--init_from and model.encoder_args.pretrained are two starts: give one of them"
            )
        name, ours = self.weights.name, self.weights.ours
        if ours is None:
            start_model(pl_module, self.weights)
        else:
            check_stem(ours[KEY], pl_module.spec, name)
            fit_weights(pl_module, self.weights.tensors, name)


class SimCLRCLI(LightningCLI):
    """LightningCLI with a run directory, and loggers and callbacks that write into it."""

    run: RunDirectory | None = None
    session: Session | None = None
    recipe: dict[str, Any] | None = None
    """What config.yaml is to hold."""

    scratch: tempfile.TemporaryDirectory[str] | None = None
    """What `bench` writes its metrics to."""

    command = "fit"
    """Which one is asked for."""

    stop = StopRequest()
    """What tells it to stop."""

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Of Lightning's four and `bench` the one that is asked for: each takes time to parse."""
        table = {**LightningCLI.subcommands(), "bench": set()}
        table["fit"] |= {"ckpt_path"}  # it resumes by --resume alone
        for options in table.values():
            # Fixed: nothing in a file is executed, and results are files.
            options |= {"weights_only", "verbose", "return_predictions"}
        return {cls.command: table[cls.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to a run."""
        add_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and looks at a checkpoint before Lightning trips over it."""
        super().parse_arguments(parser, args)
        check_values(parser_of(self, self.config.subcommand), self.config[self.config.subcommand])
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path:
            path = self.config[self.config.subcommand].ckpt_path = str(expanded(path))
            read_checkpoint(path)
        elif self.config.subcommand not in ("fit", "bench"):
            raise UserError(
                f"{self.config.subcommand} needs a trained model: give --run_dir RUN, "
                "or --config and --ckpt_path"
            )

    # Before ---------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Refuses what would change meaning, then decides on the run directory."""
        config = self.config[str(self.subcommand)]
        refuse(config.trainer)
        if self.subcommand in ("fit", "bench"):
            for key in (key for key in ("model", "data") if config[key].compiled):
                check_compiler(f"{key}.compiled")  # better before a download than behind it
        if self.subcommand == "bench":
            on_one_device(config)
            self.scratch = tempfile.TemporaryDirectory(prefix="simclr_pl-bench-")
            self.run = RunDirectory(Path(self.scratch.name))
            return
        self.run = choose_directory(config.run_dir, config_name(config))
        if config.trainer.fast_dev_run:
            self.run = None
        elif self.subcommand == "fit":
            if config.resume and config.run_dir is None:
                raise UserError("--resume needs --run_dir, the directory of the run to continue")
            if config.tensorboard:
                check_tensorboard()
            again = f"--resume --run_dir {self.run.path}"
            self.session = Session(self.run, again, "--trainer.max_epochs", self.stop)
            self.recipe = portable(parser_of(self, "fit"), config)
            self.session.claim(self.recipe, resume=config.resume)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Makes a Trainer, and looks at it before it starts anything."""
        options = vars(self.config_init[str(self.subcommand)].trainer)
        with refused_by_lightning(options, building=True):
            trainer = self._trainer(**kwargs)
        if self.session is not None:
            keep_in(trainer, self.session.run.last_checkpoint.parent)
        check_trainer(trainer, training=self.subcommand in ("fit", "bench"))
        return trainer

    def _trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds loggers, callbacks and the way checkpoints are written."""
        config = self.config_init[str(self.subcommand)]
        config.checkpoint.path = self.run.last_checkpoint if self.run else None
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        if self.session is None:
            self.save_config_callback = None
            measured = self.subcommand == "bench" and self.run
            logger = MetricsFile(measured.metrics) if measured else False
            return super().instantiate_trainer(logger=logger, **kwargs)
        run, given = self.session.run, config.trainer.logger
        self.save_config_callback = _SaveConfig
        self.save_config_kwargs = {"run": run, "recipe": self.recipe}
        own = self.session.loggers(tensorboard=config.tensorboard)
        return super().instantiate_trainer(
            logger=[*own, *([] if isinstance(given, bool) else as_list(given))],
            default_root_dir=str(run.path),
            plugins=[*as_list(config.trainer.plugins), AtomicCheckpointIO()],
            **kwargs,
        )

    def _callbacks(self, config: Any) -> list[L.Callback]:
        fit = self.subcommand == "fit"
        extra: list[L.Callback] = [StopOnNaN(), Throughput()]
        if self.session and self.recipe is not None:
            extra.append(Tracking(self.session.run, config.wandb, "pretrain", self.recipe))
            extra.append(LogCheckpoints(self.session.run, config.wandb, "pretrain"))
        if fit:  # before the bar, which would share its first line
            extra.append(DerivedTable(str(self.run.path) if self.run else "none (fast_dev_run)"))
        if config.trainer.enable_progress_bar is not False:
            extra.append(Progress())
        extra.extend(self.session.callbacks() if self.session else [OutOfMemory()])
        if fit and config.init_from and not (self.session and self.session.resume_from):
            extra.append(_InitFrom(config.init_from))
        if self.subcommand == "predict" and self.run is not None:
            extra.append(FeatureWriter(self._features_path()))
        return extra

    # The five commands ----------------------------------------------------------------------------

    def fit(self, model: L.LightningModule, datamodule: ContrastiveDataModule) -> None:
        """Trains; resumes where that was asked for and there is something to resume."""
        options = vars(self.config[str(self.subcommand)].trainer)
        with refused_by_lightning(options):
            self._fit(model, datamodule)
        if self.trainer.is_global_zero:
            say_unseen(self.trainer)
            profiler: Any = vars(self.trainer).get("profiler")
            # (Lightning says it where its log is read, which this package's users are spared.)
            if isinstance(profiler, Profiler) and profiler.filename is None:
                sys.stdout.write(profiler.summary())

    def _fit(self, model: L.LightningModule, datamodule: ContrastiveDataModule) -> None:
        if self.session is None:
            with explained(self.trainer):
                self.trainer.fit(model, datamodule)
            return
        if self.session.resume_from is not None:
            datamodule.kept = kept_by(self.session.run, self.session.resume_from)
        try:
            self.session.train(self.trainer, model, datamodule)
        except BaseException as error:
            self.session.end(error)
            raise
        self.session.end()

    def bench(self, model: SimCLR, datamodule: Any, out: str | None, seconds: float) -> None:
        """Measures steps of `fit`, without validation and checkpoints."""
        bench(self.trainer, model, datamodule, out=out, seconds=seconds)

    def validate(self, **kwargs: Any) -> None:
        """Scores the validation split."""
        self._score("val", self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Scores the test split."""
        self._score("test", self.trainer.test, kwargs)

    def _held_out_of(self, checkpoint: Path) -> None:
        """The data's validation images are those of the checkpoint's run, if they are its data.

        The run's directory is also where files are named that cannot be read.
        """
        run, data = run_of(checkpoint), self.datamodule
        if run is not None and sees_own_data(run, data.given_dataset, data.root):
            data.kept = kept_by(run, checkpoint)
        run = run or self.run
        data.left_out = run and run.left_out

    def _score(self, split: str, evaluate: Any, kwargs: dict[str, Any]) -> None:
        checkpoint = Path(kwargs["ckpt_path"])
        self._held_out_of(checkpoint)
        numbers = evaluate(**{**kwargs, "verbose": False, "weights_only": True})[0]
        if not self.trainer.is_global_zero:
            return
        say_missing(self.datamodule)
        fields = {
            "loss": numbers[f"{split}/loss"],
            "top1": numbers.get(f"probe/{split}_top1"),
            "top5": numbers.get(f"probe/{split}_top5"),  # none of fewer than six classes
        }
        out = sys.stdout.write
        for name, value in fields.items():
            if value is not None or name == "top1":
                out(f"{split} {name}: {'no labels' if value is None else f'{value:.4f}'}\n")
        if self.run is not None:
            home = run_of(checkpoint) or self.run
            about = {
                "split": split,
                "seed": self.model.seed,
                "epoch": int(read_checkpoint(checkpoint)["epoch"]) + 1,
                "dataset": self.datamodule.dataset,
                "checkpoint": checkpoint,
            }
            path = write_result(home.results, protocol="probe", **fields, **about)
            out(f"(online probe on frozen features of {checkpoint}) written to {path}\n")
            tell(home, "probe", numbers, about, self.config[str(self.subcommand)].wandb.mode)

    def predict(self, **kwargs: Any) -> None:
        """Writes features, labels and indices of `data.predict_split`."""
        self._held_out_of(Path(kwargs["ckpt_path"]))
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})
        if self.trainer.is_global_zero and self.run is not None:
            sys.stdout.write(f"features, labels and index written to {self._features_path()}\n")

    def _features_path(self) -> Path:
        config = self.config[str(self.subcommand)]
        assert self.run is not None
        folder = (run_of(Path(config.ckpt_path)) or self.run).path
        return folder / f"features-{config.data.predict_split}.npz"


def run_cli(args: list[str]) -> None:
    """Runs one of the five commands.

    Args:
        args: command and options, as on the command line.

    Raises:
        UserError: for whatever the user can put right.
    """
    quieten()
    args, Parser.only = wanted_group(args)
    args = spelled_out(args)
    for flag, value in itertools.pairwise(args):
        if flag in ("-c", "--config") and "label_fraction" in read_config(Path(value)):
            raise UserError(
                f"{value} is of a fine-tuning, and {args[0]} is for pretraining: go on with "
                "finetune --resume, or score its checkpoint with linear or knn"
            )
    sys.argv = [sys.argv[0], *args]

    with job() as stop:
        _run(args[0], stop)


def _run(asked: str, stop: StopRequest) -> None:
    class Asked(SimCLRCLI):
        command = asked

    # A reference that outlives a constructor which raises.
    cli = Asked.__new__(Asked)
    cli.stop = stop
    try:
        cli.__init__(  # type: ignore[misc]
            SimCLR,
            ContrastiveDataModule,
            trainer_class=_Trainer,
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
        if cli.session is not None:
            cli.session.discard()
        raise
    finally:
        if cli.scratch is not None:
            cli.scratch.cleanup()
