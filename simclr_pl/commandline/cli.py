"""LightningCLI, wired to a run directory: what `fit` and `finetune` have in common."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.profilers import Profiler

from simclr_pl.cluster.out_of_memory import OutOfMemory, explained
from simclr_pl.cluster.requeue import job
from simclr_pl.cluster.signals import StopRequest
from simclr_pl.commandline.help import wanted_group
from simclr_pl.commandline.options import Parser, as_list, check_values, refuse
from simclr_pl.commandline.progress import Progress
from simclr_pl.commandline.trainer_options import refused_by_lightning
from simclr_pl.commandline.training import Session, quieten
from simclr_pl.core.model.refused import check_trainer
from simclr_pl.lightning_internals import parser_of
from simclr_pl.monitors.throughput import Throughput
from simclr_pl.run.best import keep_in, say_unseen
from simclr_pl.run.checkpoints import REMEDY, AtomicCheckpointIO, StopOnNaN
from simclr_pl.run.config import portable
from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.artifacts import LogCheckpoints
from simclr_pl.tracking.loggers import Job, Tracking
from simclr_pl.tracking.tensorboard import check_tensorboard


class SimCLRCLI(LightningCLI):
    """LightningCLI with a run directory, and loggers and callbacks that write into it.

    A subclass names the command's model and data, adds its options, and claims a directory before
    its trainer is made.
    """

    command = "fit"
    """The command to parse: parsing the options of every command would take time."""

    job: Job = "pretrain"
    """The kind of run: its job type in W&B."""

    artifact: str | None = None
    """The W&B artifact that the run starts from, if any."""

    longer = "--trainer.max_epochs"
    """The option that moves the end of a training."""

    remedy = REMEDY
    """Advice where the loss is no longer a number."""

    stop = StopRequest()
    """Tells the training to stop when a signal has come."""

    run: RunDirectory | None = None
    session: Session | None = None
    """The training in its run directory; `None` where nothing is kept."""

    logger: Any = False
    """The logger of a command that keeps no training."""

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """The command that is asked for, and arguments of the Trainer's method that are fixed.

        Nothing in a file is executed, results are files, and `--resume` alone resumes.
        """
        fixed = {"weights_only", "verbose", "return_predictions", "model", "datamodule"}
        if cls.command == "fit":
            fixed.add("ckpt_path")
        return {cls.command: LightningCLI.subcommands().get(cls.command, set()) | fixed}

    @property
    def options(self) -> Any:
        """The command's options, as they were parsed."""
        return self.config[self.command]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and looks at values that the parser has let through."""
        self.config = parser.parse_args(args)
        check_values(parser_of(self, self.command), self.options)

    def before_instantiate_classes(self) -> None:
        """Refuses options that no Trainer can be made of, and loggers that are not installed."""
        refuse(self.options.trainer)

    def claim(self, run: RunDirectory, again: str, **found: Any) -> None:
        """Takes a directory for this training, or for its continuation.

        Args:
            run: the directory.
            again: the options that, added to the same command, continue the training.
            found: entries of config.yaml beside the options.

        Raises:
            UserError: as `Session.claim`; TensorBoard is wanted and isn't there.
        """
        if self.options.tensorboard:
            check_tensorboard()
        parser = parser_of(self, self.command)
        self.run, self.session = run, Session(run, again, self.longer, self.stop)
        recipe = portable(parser, self.options) | found
        defaults = parser.get_defaults().as_dict()
        self.session.claim(recipe, defaults, resume=self.options.resume)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Makes a Trainer, and looks at it before it starts anything."""
        with refused_by_lightning(vars(self.config_init[self.command].trainer), building=True):
            trainer = self._trainer(**kwargs)
        if self.session is not None:
            keep_in(trainer, self.session.run.last_checkpoint.parent)
        check_trainer(trainer, training="ckpt_path" not in self.options)
        return trainer

    def _trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds loggers, callbacks and the way checkpoints are written."""
        config = self.config_init[self.command]
        self.trainer_defaults["callbacks"] = self.callbacks()
        if self.session is None:
            return super().instantiate_trainer(logger=self.logger, **kwargs)
        run, given = self.session.run, config.trainer.logger
        own = self.session.loggers(tensorboard=config.tensorboard)
        return super().instantiate_trainer(
            logger=[*own, *([] if isinstance(given, bool) else as_list(given))],
            default_root_dir=str(run.path),
            plugins=[*as_list(config.trainer.plugins), AtomicCheckpointIO()],
            **kwargs,
        )

    def callbacks(self) -> list[L.Callback]:
        """Callbacks beside those that are options of their own."""
        found: list[L.Callback] = [StopOnNaN(self.remedy), Throughput()]
        if self.session is not None:
            run, wandb = self.session.run, self.config_init[self.command].wandb
            found.append(Tracking(run, wandb, self.job, self.session.recipe, self.artifact))
            found.append(LogCheckpoints(run, wandb, self.job))
        if self.options.trainer.enable_progress_bar is not False:
            found.append(Progress())
        return [*found, *(self.session.callbacks() if self.session else [OutOfMemory()])]

    def train(self, model: L.LightningModule, data: L.LightningDataModule) -> None:
        """`Trainer.fit`, from the start or from the checkpoint to go on from.

        Raises:
            UserError: Lightning refuses an option; or as `Session.train`.
        """
        with refused_by_lightning(vars(self.options.trainer)):
            if self.session is not None:
                self.session.train(self.trainer, model, data)
            else:
                with explained(self.trainer):
                    self.trainer.fit(model, data)
        if self.trainer.is_global_zero:
            say_unseen(self.trainer)
            profiler: Any = vars(self.trainer).get("profiler")
            # (Lightning says it where its log is read, which this package's users are spared.)
            if isinstance(profiler, Profiler) and profiler.filename is None:
                sys.stdout.write(profiler.summary())


def run_command(
    command: type[SimCLRCLI],
    args: list[str],
    model: type[L.LightningModule],
    data: type[L.LightningDataModule],
    trainer: type[L.Trainer],
    description: str = "",
) -> None:
    """Runs a command.

    Args:
        command: its class, which has its name.
        args: name and options, as on the command line, spelt out.
        model: the model's class.
        data: the data module's.
        trainer: the Trainer's, whose method has the command's name and further options.
        description: what `--help` says first (default: the method's own first line).

    Raises:
        UserError: for whatever the user can put right.
    """
    quieten()
    args, Parser.only = wanted_group(args)
    sys.argv = [sys.argv[0], *args]  # which ranks that Lightning starts run as well
    # A reference that outlives a constructor which raises.
    cli = command.__new__(command)
    with job() as stop:
        cli.stop = stop
        try:
            cli.__init__(  # type: ignore[misc]
                model,
                data,
                trainer_class=trainer,
                parser_class=Parser,
                seed_everything_default=0,
                save_config_callback=None,
                # Hyperparameters are plain arguments: how they were parsed need not be recorded.
                load_from_checkpoint_support=False,
                # The recipe has one place for the optimiser, and keys have one spelling.
                auto_configure_optimizers=False,
                parser_kwargs={
                    "allow_abbrev": False,
                    "prog": "python -m simclr_pl",
                    command.command: {"description": description} if description else {},
                },
            )
        except BaseException:
            if cli.session is not None:
                cli.session.discard()
            raise
