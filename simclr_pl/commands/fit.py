"""`fit`, `validate`, `test`, `predict`, `bench`, `doctor`: pretraining's commands."""

import itertools
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from simclr_pl.commandline.cli import SimCLRCLI, run_command
from simclr_pl.commandline.options import add_monitors, add_run_options, config_name
from simclr_pl.commandline.shorthand import spelled_out
from simclr_pl.commandline.trainer_options import refused_by_lightning
from simclr_pl.commands.bench.bench import bench, on_one_device
from simclr_pl.commands.doctor import doctor, for_few_steps
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.checkpoint import KEY, check_stem, fit_weights, read_checkpoint
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.core.paths import expanded
from simclr_pl.core.speed.compiler import check_compiler
from simclr_pl.protocols.features import FeatureWriter
from simclr_pl.protocols.start_weights import start_model
from simclr_pl.protocols.weight_files import read_weights
from simclr_pl.run.config import is_fine_tuning
from simclr_pl.run.derived import DerivedTable
from simclr_pl.run.directory import RunDirectory, choose_directory, run_of
from simclr_pl.run.metrics import MetricsFile
from simclr_pl.run.results import write_result
from simclr_pl.run.seen import keep_statistics, kept_by, say_missing, sees_own_data
from simclr_pl.run.yaml_file import read_config
from simclr_pl.tracking.evaluations import log_evaluation
from simclr_pl.tracking.tensorboard import check_tensorboard

HELP = {
    "fit": "Pretrains an encoder, or continues a run with --resume.",
    "validate": "Scores a run on its validation split: loss, and accuracy of the online probe.",
    "test": "Scores a run on its test split: loss, and accuracy of the online probe.",
    "predict": "Writes features, labels and indices of data.predict_split to one .npz file.",
}
"""First lines of `--help`; `bench` and `doctor` have their methods'."""

ANEW = ("fit", "bench", "doctor")
"""Commands that train from the start, and need no checkpoint."""


class _Trainer(L.Trainer):
    def bench(self, out: str | None = None, seconds: float = 20.0) -> None:
        """Measures how fast a recipe trains on this machine, and says what to change.

        Args:
            out: a JSON file for what was measured (default: none is written).
            seconds: how long training steps are measured, about; slow steps take longer.
        """

    def doctor(self, images: int = 2000) -> None:
        """Says what a recipe does on this machine, and what looks wrong; 1 where `fit` fails.

        Args:
            images: how many images are looked at, about: bad ones, copies, kinds and sizes.
        """


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


class PretrainingCLI(SimCLRCLI):
    """Pretraining, and what is asked of a pretrained run."""

    scratch: Path | None = None
    """The folder that `bench` and `doctor` write their metrics to."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to a run: the callbacks' groups, its directory, its loggers."""
        add_monitors(parser)
        add_run_options(
            parser,
            "folder for everything of this run (default: runs/<config name>/<time>)",
            "continue the run in --run_dir, or start one there",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="weights to start from: a file, torchvision:NAME or timm:NAME",
        )
        parser.set_defaults({"trainer.max_epochs": 100})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and looks at a checkpoint before Lightning trips over it."""
        super().parse_arguments(parser, args)
        path = self.options.get("ckpt_path")
        if path:
            self.options.ckpt_path = str(expanded(path))
            read_checkpoint(self.options.ckpt_path)
        elif self.command not in ANEW:
            raise UserError(
                f"{self.command} needs a trained model: give --run_dir RUN, "
                "or --config and --ckpt_path"
            )

    def before_instantiate_classes(self) -> None:
        """Refuses what would change meaning, then decides on the run directory."""
        super().before_instantiate_classes()
        config = self.options
        if self.command in ANEW:
            for key in (key for key in ("model", "data") if config[key].compiled):
                check_compiler(f"{key}.compiled")  # better before a download than behind it
        if self.scratch is not None:
            if self.command == "bench":
                on_one_device(config)
            else:
                for_few_steps(config.trainer)
                if config.tensorboard:
                    check_tensorboard()
            self.run = RunDirectory(self.scratch)
            self.logger = MetricsFile(self.run.metrics)
            return
        run = choose_directory(config.run_dir, config_name(config))
        self.run = None if config.trainer.fast_dev_run else run
        if self.command == "fit" and self.run:
            if config.resume and config.run_dir is None:
                raise UserError("--resume needs --run_dir, the directory of the run to continue")
            self.claim(run, f"--resume --run_dir {run.path}")

    def callbacks(self) -> list[L.Callback]:
        """Adds what the command writes, and the weights that a new run starts from."""
        config = self.config_init[self.command]
        config.checkpoint.path = self.run.last_checkpoint if self.run else None
        found = super().callbacks()
        if self.command == "fit":  # before the bar, which would share its first line
            found.insert(0, DerivedTable(str(self.run.path) if self.run else "none (fast_dev_run)"))
        resumes = self.session is not None and self.session.resume_from is not None
        if self.command in ("fit", "doctor") and config.init_from and not resumes:
            found.append(_InitFrom(config.init_from))
        if self.command == "predict" and self.run is not None:
            found.append(FeatureWriter(self._features_path()))
        return found

    # The commands --------------------------------------------------------------------------------

    def fit(self, model: L.LightningModule, datamodule: ContrastiveDataModule) -> None:
        """Trains; resumes where that was asked for and there is something to resume."""
        if self.session and self.session.resume_from:
            datamodule.kept = kept_by(self.session.run, self.session.resume_from)
            keep_statistics(datamodule, self.session.resume_from)
        with self.session or nullcontext():
            self.train(model, datamodule)

    def bench(self, model: SimCLR, datamodule: Any, out: str | None, seconds: float) -> None:
        """Measures steps of `fit`, without validation and checkpoints."""
        bench(self.trainer, model, datamodule, out=out, seconds=seconds)

    def doctor(self, model: SimCLR, datamodule: Any, images: int) -> None:
        """Looks at the images and the recipe, and trains a few steps of `fit` on one device."""
        given, world = self.config_init[self.command].trainer, self.trainer.world_size
        if world > 1:
            given.devices, given.num_nodes, given.strategy = 1, 1, "auto"
            self.trainer = self.instantiate_trainer()
        mode = self.options.wandb.mode
        with refused_by_lightning(vars(self.options.trainer)):
            doctor(self.trainer, model, datamodule, world=world, images=images, wandb=mode)

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
        keep_statistics(data, checkpoint)
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
            log_evaluation(home, "probe", numbers, about, self.options.wandb.mode)

    def predict(self, **kwargs: Any) -> None:
        """Writes features, labels and indices of `data.predict_split`."""
        self._held_out_of(Path(kwargs["ckpt_path"]))
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})
        if self.trainer.is_global_zero and self.run is not None:
            sys.stdout.write(f"features, labels and index written to {self._features_path()}\n")

    def _features_path(self) -> Path:
        config = self.options
        assert self.run is not None
        folder = (run_of(Path(config.ckpt_path)) or self.run).path
        return folder / f"features-{config.data.predict_split}.npz"


def run_cli(args: list[str]) -> None:
    """Runs one of the commands.

    Args:
        args: command and options, as on the command line.

    Raises:
        UserError: for whatever the user can put right.
    """
    args = spelled_out(args)
    for flag, value in itertools.pairwise(args):
        if flag in ("-c", "--config") and is_fine_tuning(read_config(expanded(value))):
            does = "only pretrains" if args[0] == "fit" else "reads pretraining runs alone"
            raise UserError(
                f"{value} is the config of a fine-tuning run, but `{args[0]}` {does}: use "
                "`finetune --resume` to continue it, or `linear` or `knn` to score its checkpoint"
            )
    prefix = f"simclr_pl-{args[0]}-"
    measures = args[0] in ("bench", "doctor")
    folder = tempfile.TemporaryDirectory(prefix=prefix) if measures else nullcontext()
    with folder as scratch:

        class Asked(PretrainingCLI):
            command = args[0]

        Asked.scratch = None if scratch is None else Path(scratch)
        help_text = HELP.get(args[0], "")
        run_command(Asked, args, SimCLR, ContrastiveDataModule, _Trainer, help_text)
