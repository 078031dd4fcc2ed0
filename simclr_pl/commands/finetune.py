"""`finetune`: what the pretrained network is worth as a start, with few labels or with all."""

import argparse
import inspect
import itertools
import sys
from typing import Any, Literal

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from simclr_pl.commandline.call import data_arguments
from simclr_pl.commandline.cli import SimCLRCLI, run_command
from simclr_pl.commandline.options import add_run_options
from simclr_pl.commandline.over_seeds import report
from simclr_pl.commandline.shorthand import split_equals
from simclr_pl.commandline.target import DataChoice, Pretrained, check_seeds, find_pretrained
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.simclr import SimCLR
from simclr_pl.core.paths import expanded
from simclr_pl.lightning_internals import parser_of
from simclr_pl.protocols.finetune import (
    DECIDES,
    EPOCHS,
    FROM_PRETRAINED,
    FROM_SCRATCH,
    STEPS,
    FineTuning,
)
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule
from simclr_pl.protocols.scoring import Score
from simclr_pl.run.checkpoints import SaveCheckpoint
from simclr_pl.run.config import is_fine_tuning
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.results import sha256
from simclr_pl.run.seen import kept_by, range_in, say_missing
from simclr_pl.run.yaml_file import read_config
from simclr_pl.tracking.artifacts import artifact_of

SHORT = {**DECIDES, "checkpoint": "model.checkpoint", "epochs": "trainer.max_epochs"}
"""Options that are also written without their group."""

PRETRAINING = {*inspect.signature(SimCLR).parameters} - {
    *inspect.signature(FineTuning).parameters
} | {"encoder"}
"""Keys of `model` by which a recipe is known as one of pretraining."""

LENGTH = f"{EPOCHS}, more of few images: {STEPS:,} steps"

COLOURS = {"jitter", "grayscale", "blur"}

NOT_OF_THE_RUN = {
    *COLOURS, *("views", "compiled", "predict_split", "seed", "batch_size", "label_fraction"),
}  # fmt: skip
"""Keys of the pretraining's `data` that its fine-tuning does not take over."""

HELP = """The pretrained network, trained on with a share of train's labels.

A classifier that starts at zero is put on the encoder, and all of it is trained on crops and flips
(SGD with Nesterov momentum, a cosine to zero, no weight decay: the paper's appendix B.5). Nothing
is chosen on the way: the last epoch's network is scored once. `val`'s labels are never trained on.
Accuracies are fractions from 0 to 1. Each seed is a run of its own, in
RUN/finetune/<protocol>-seed<seed>."""


class _Trainer(L.Trainer):
    def finetune(
        self,
        split: Literal["val", "test"] = "test",
        seeds: list[int] | None = None,
        out: str | None = None,
    ) -> None:
        """Trains with each seed, and scores the last epoch's network.

        Args:
            split: what to score; test is for the end.
            seeds: of the draw of labels, order, crops and fresh weights (default: the run's seed).
            out: folder for the runs, instead of RUN/finetune.
        """


class FineTuningCLI(SimCLRCLI):
    """Trainings that differ by their seed alone; data and checkpoint are a pretraining's."""

    command = "finetune"
    job = "finetune"
    longer = "--epochs"
    remedy = "lower --learning_rate"

    pretrained: Pretrained
    seeds: list[int]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to a run, and the short names."""
        add_run_options(
            parser,
            "directory of a run, instead of a checkpoint: its last one",
            "go on with what was broken off, or begin",
        )
        # What a run's config.yaml says of its data, for a resume to compare.
        parser.add_argument(
            "--derived", type=dict[str, Any] | None, default=None, help=argparse.SUPPRESS
        )
        parser.set_defaults(
            {
                "trainer.precision": "32-true",
                "trainer.deterministic": False,
                "trainer.log_every_n_steps": 10,
                "trainer.enable_progress_bar": True,
                "trainer.check_val_every_n_epoch": None,
                "seed_everything": None,
                "data.dataset": None,
                "data.root": None,
            }
        )
        known = parser._option_string_actions
        for short, name in SHORT.items():
            action = known[f"--{short}"] = known[f"--{name}"]
            action.option_strings = [f"--{short}", *action.option_strings]
        known["--epochs"].help = f"passes over the labelled images (default: {LENGTH})"

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses twice: the defaults of data and seed are those of the checkpoint's run."""
        (command, *rest), recipes = _without_pretrainings(sys.argv[1:])
        given = [arg for arg in rest if not arg.startswith("--print_config")]
        first = parser.parse_args([command, "--model.checkpoint=", *given])[command]
        check_seeds(first.seeds)
        chosen = DataChoice(first.data.dataset, first.data.root)
        path = first.model.checkpoint or None
        self.pretrained = find_pretrained(path, first.run_dir, recipes or None, chosen)
        about, of_run = self.pretrained.about, data_arguments(self.pretrained.configs)
        data = {
            "root": ContrastiveDataModule().root,
            **{key: value for key, value in of_run.items() if key not in NOT_OF_THE_RUN},
            "image_size": about["image_size"],
            "mean": tuple(about["mean"]),
            "std": tuple(about["std"]),
            **range_in(about),
        }
        parser_of(self, command).set_defaults(
            {
                **{f"data.{key}": value for key, value in data.items()},
                "seed_everything": self.pretrained.seed,
                "model.encoder": self.pretrained.own_encoder,
                "model.learning_rate": (
                    FROM_SCRATCH if first.model.from_scratch else FROM_PRETRAINED
                ),
            }
        )
        path = str(self.pretrained.checkpoint.absolute())
        super().parse_arguments(parser, [command, f"--model.checkpoint={path}", *rest])
        self.options.seed_everything = (self.options.seeds or [self.options.seed_everything])[0]

    @property
    def protocol(self) -> str:
        """Its name, as in `finetune-projector1-0.01`."""
        model, layers = self.options.model, self.options.model.from_projector_layer
        parts = ["supervised" if model.from_scratch else "finetune"]
        parts += [f"projector{layers}"] if layers else []
        parts += ["head"] if model.head_only else []
        return "-".join([*parts, f"{self.options.data.label_fraction:g}"])

    def run_with(self, seed: int) -> RunDirectory:
        """Where the training with a seed goes."""
        out = self.options.out
        folder = expanded(out) if out else self.pretrained.folder("finetune")
        return RunDirectory(folder / f"{self.protocol}-seed{seed}", "--out")

    def before_instantiate_classes(self) -> None:
        """Refuses what no run could mean, before the first of them begins."""
        super().before_instantiate_classes()
        epochs = self.options.trainer.max_epochs
        if epochs is not None and epochs < 1:
            raise UserError(f"epochs is {epochs}, but must be at least 1")
        self.seeds = self.options.seeds or [int(self.options.seed_everything)]
        for seed in self.seeds:
            self.run_with(seed).check_free(resume=self.options.resume)
        run, scratch = self.pretrained.run, self.options.model.from_scratch
        if run is not None and not scratch:
            self.artifact = artifact_of(run, self.pretrained.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Reads the data, by which a training has its length, claims its directory, and goes on."""
        options, data = self.options, self.datamodule
        run = self.run_with(int(options.seed_everything))
        resumed = options.resume and run.last_checkpoint.exists()
        data.kept = kept_by(run, run.last_checkpoint) if resumed else self.pretrained.held_out
        data.prepare_data()
        data.setup()
        say_missing(data)
        data.check_scored(options.split)
        # A multiple of ten: of its ten validations the last one is the last epoch's.
        epochs = options.trainer.max_epochs or max(EPOCHS, 10 * -(-STEPS // (10 * data.steps)))
        every = options.trainer.check_val_every_n_epoch or max(1, epochs // 10)
        lengths = {"max_epochs": epochs, "check_val_every_n_epoch": every}
        vars(options.trainer).update(lengths)
        derived = {
            "checkpoint_sha256": sha256(self.pretrained.checkpoint),
            "labels": data.labels,
            "classes": data.num_classes,
        }
        self.claim(run, "--resume", derived=derived)
        trainer = super().instantiate_trainer(**lengths, **kwargs)
        limit = getattr(trainer, f"limit_{options.split}_batches")
        if isinstance(limit, int) or limit < 1:
            raise UserError(
                f"trainer.limit_{options.split}_batches (or fast_dev_run, or overfit_batches) "
                f"would score a part of the {options.split} split: leave it out"
            )
        return trainer

    def callbacks(self) -> list[L.Callback]:
        """Adds the one that saves, as often as there is a validation."""
        every = self.options.trainer.check_val_every_n_epoch
        return [SaveCheckpoint(every), *super().callbacks()]

    def finetune(self, split: Literal["val", "test"], **kwargs: Any) -> None:
        """Trains with each seed, scores, and writes results."""
        scratch = self.options.model.from_scratch
        start = "from fresh weights" if scratch else "from pretrained weights"
        fields = {name: self.options[option] for name, option in DECIDES.items()}
        fields["epoch"] = 0 if scratch else self.pretrained.epoch
        report(self.pretrained, self.protocol, split, self.seeds, self._score, start, **fields)

    def _score(self, seed: int) -> Score:
        """Trains, and scores the network of the last epoch."""
        if seed != self.options.seed_everything:  # the first seed's trainer is there
            self.options.seed_everything = L.seed_everything(seed, workers=True)
            self.instantiate_classes()
        trainer, model, data, session = self.trainer, self.model, self.datamodule, self.session
        assert session is not None
        trainer.print(
            f"{session.run.path}: {data.labels} labelled images, {trainer.max_epochs} epochs of "
            f"{data.steps} x {data.batch_size} images"
        )
        with session:
            self.train(model, data)
            score = trainer.validate if self.options.split == "val" else trainer.test
            score(model, data, verbose=False)
        chosen = {"labels": data.labels, "epochs": trainer.current_epoch}
        return Score(chosen=chosen, **model.accuracies)


def _without_pretrainings(args: list[str]) -> tuple[list[str], list[str]]:
    """A command line without configurations of pretrainings, and these: they give data alone."""
    rest, recipes, option = [], [], ""
    for arg in itertools.chain.from_iterable(map(split_equals, args)):
        option = arg if arg.startswith("-") else option
        if option not in ("-c", "--config"):
            rest.append(arg)
        elif arg != option:
            own = not _pretrains(read_config(expanded(arg)))
            rest += ["--config", arg] if own else []
            recipes += [] if own else [arg]
    if args[-1:] in (["-c"], ["--config"]):  # without a file, which the parser is to say
        rest += args[-1:]
    return rest, recipes


def _pretrains(config: dict[str, Any]) -> bool:
    """Whether a configuration is that of a pretraining."""
    model, data = ({*(config.get(group) or {})} for group in ("model", "data"))
    return not is_fine_tuning(config) and bool(model & PRETRAINING or data & COLOURS)


def run_cli(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: command and options, as on the command line.

    Raises:
        UserError: for whatever can be put right: a checkpoint that cannot be read, no labels, a
            fraction that leaves a class empty, other channels, a value out of its range.
    """
    run_command(FineTuningCLI, args, FineTuning, LabelledDataModule, _Trainer, HELP)
