"""`finetune`: what the pretrained network is worth as a start, with few labels or with all."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L

from simclr_pl.cluster.requeue import job
from simclr_pl.cluster.signals import StopRequest
from simclr_pl.commandline.call import call
from simclr_pl.commandline.progress import Progress
from simclr_pl.commandline.scores import report
from simclr_pl.commandline.target import DataChoice, Pretrained, check_seeds, find_pretrained
from simclr_pl.commandline.trainer_options import refused_by_lightning
from simclr_pl.commandline.training import Session, quieten
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.optim import OptimizerRecipe
from simclr_pl.core.model.refused import check_trainer
from simclr_pl.core.paths import expanded
from simclr_pl.monitors.throughput import Throughput
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.finetune import EPOCHS, STEPS, FineTuning
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule
from simclr_pl.protocols.scoring import Score
from simclr_pl.run.checkpoints import AtomicCheckpointIO, SaveCheckpoint, StopOnNaN
from simclr_pl.run.config import save_config
from simclr_pl.run.directory import RunDirectory, is_rank_zero
from simclr_pl.run.results import sha256
from simclr_pl.run.seen import kept_by
from simclr_pl.tracking.artifacts import LogCheckpoints, artifact_of
from simclr_pl.tracking.loggers import Tracking
from simclr_pl.tracking.tensorboard import check_tensorboard
from simclr_pl.tracking.wandb import WandbChoice

FROM_PRETRAINED = 0.05
"""The paper's learning rate for a batch of 256 (appendix B.5)."""

FROM_SCRATCH = 0.2
"""The baseline's own: of 0.05, 0.2 and 0.5 the best on Fashion-MNIST's val, with 1 % of labels."""


@dataclass(frozen=True)
class TrainerChoice:
    """Lightning's Trainer, as far as it has a say here.

    Args:
        accelerator: cpu, gpu, or auto.
        devices: how many of them, or which; the recipe stays the same.
        num_nodes: machines.
        strategy: Lightning's name; auto is DDP where there are several devices.
        precision: 32-true, bf16-mixed, 64-true, ...
        gradient_clip_val: largest norm of the gradient (default: no clipping).
        deterministic: forbid algorithms whose sums have no fixed order.
        log_every_n_steps: how often numbers are logged, in optimiser steps.
        enable_progress_bar: show steps, numbers and the time left.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | int = "32-true"
    gradient_clip_val: float | None = None
    deterministic: bool = False
    log_every_n_steps: int = 10
    enable_progress_bar: bool = True


@dataclass(frozen=True)
class _Recipe:
    """What decides the result, beside the checkpoint and the data; config.yaml holds it."""

    label_fraction: float
    from_projector_layer: int
    from_scratch: bool
    head_only: bool
    epochs: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float

    @property
    def optimizer(self) -> OptimizerRecipe:
        return OptimizerRecipe(
            "sgd", self.learning_rate, "linear", self.weight_decay, 0.9, 0, nesterov=True
        )

    @property
    def fields(self) -> dict[str, Any]:
        """As plain values, but for the epochs: how many they come to depends on the data."""
        return {name: value for name, value in asdict(self).items() if name != "epochs"}

    @property
    def protocol(self) -> str:
        """Its name, as in `finetune-projector1-0.01`."""
        parts = ["supervised" if self.from_scratch else "finetune"]
        parts += [f"projector{self.from_projector_layer}"] if self.from_projector_layer else []
        parts += ["head"] if self.head_only else []
        return "-".join([*parts, f"{self.label_fraction:g}"])

    def check(self) -> None:
        """Raises `UserError` for values that no run could mean."""
        self.optimizer.check("")
        for name, least in (("epochs", 1), ("batch_size", 2), ("from_projector_layer", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}, but must be at least {least}")
        if self.from_scratch and self.head_only:
            raise UserError(
                "--from_scratch trains the whole network, and --head_only its last layer alone: "
                "give one of them"
            )


def finetune(
    *,
    label_fraction: float,
    checkpoint: str | None = None,
    run_dir: str | None = None,
    config: list[str] | None = None,
    data: DataChoice = DataChoice(),  # noqa: B008 - frozen
    split: Literal["val", "test"] = "test",
    from_projector_layer: int = 0,
    from_scratch: bool = False,
    head_only: bool = False,
    seeds: list[int] | None = None,
    epochs: int | None = None,
    batch_size: int = 256,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    trainer: TrainerChoice = TrainerChoice(),
    wandb: WandbChoice = WandbChoice(),  # noqa: B008 - frozen
    tensorboard: bool = False,
    out: str | None = None,
    resume: bool = False,
) -> list[Score]:
    """Fine-tuning: the pretrained network, trained on with a share of train's labels.

    A classifier that starts at zero is put on the encoder, and all of it is trained on crops and
    flips (SGD with Nesterov momentum, a cosine to zero, no weight decay: the paper's appendix B.5).
    Nothing is chosen on the way: the last epoch's network is scored once. `val`'s labels are never
    trained on. Accuracies are fractions from 0 to 1.

    Each seed is a run of its own, in RUN/finetune/<protocol>-seed<seed>.

    Args:
        label_fraction: share of each class's labelled training images, above 0 and at most 1; the
            same images for everybody with the same seed and data.
        checkpoint: a training checkpoint, or an exported encoder.
        run_dir: directory of a run, instead of a checkpoint: its last one.
        config: configuration files that give the data (default: the run's own config.yaml).
        data: another data set than the run's (transfer).
        split: what to score; test is for the end.
        from_projector_layer: keep so many layers of the projection head below the classifier
            (SimCLR v2 keeps 1; 0 is the encoder alone).
        from_scratch: the supervised baseline: the same network from fresh weights.
        head_only: train the classifier alone.
        seeds: of the draw of labels, order, crops and fresh weights (default: the run's seed).
        epochs: passes over the labelled images (default: 60, more of few images: 1,000 steps).
        batch_size: images a step at most, global: over all devices together.
        learning_rate: the peak for a batch of 256 images; it follows the batch (default: 0.05, and
            0.2 from scratch).
        weight_decay: on weights; biases, norms, tokens and tables of positions have none.
        trainer: where and how it is computed.
        wandb: Weights & Biases.
        tensorboard: whether numbers go into tensorboard/ of each run too.
        out: folder for the runs, instead of RUN/finetune.
        resume: go on with what was broken off, or begin where nothing is there yet.

    Returns:
        A score for each seed.

    Raises:
        UserError: for whatever can be put right: a checkpoint that cannot be read, no labels, a
            fraction that leaves a class empty, other channels, a value out of its range.
    """
    check_seeds(seeds)
    if learning_rate is None:
        learning_rate = FROM_SCRATCH if from_scratch else FROM_PRETRAINED
    recipe = _Recipe(
        label_fraction, from_projector_layer, from_scratch, head_only,
        epochs, batch_size, learning_rate, weight_decay,
    )  # fmt: skip
    recipe.check()
    if tensorboard:
        check_tensorboard()
    pretrained = find_pretrained(checkpoint, run_dir, config, data)
    folder = expanded(out) if out else pretrained.folder("finetune")
    start = "from fresh weights" if from_scratch else "from pretrained weights"
    chosen = [pretrained.seed] if seeds is None else seeds
    fields = recipe.fields | {"epoch": 0 if from_scratch else pretrained.epoch}
    with job() as stop:
        trainings = _Trainings(
            pretrained, recipe, split, trainer, wandb, tensorboard, folder, resume, stop
        )
        for seed in chosen:
            trainings.run(seed).check_free(resume=resume)
        name, mode, evaluate = recipe.protocol, wandb.mode, trainings.evaluate
        return report(pretrained, name, split, chosen, evaluate, start, mode, **fields)


@dataclass(frozen=True)
class _Trainings:
    """Trainings that differ by their seed alone."""

    pretrained: Pretrained
    recipe: _Recipe
    split: Literal["val", "test"]
    choice: TrainerChoice
    wandb: WandbChoice
    tensorboard: bool
    folder: Path
    resume: bool
    stop: StopRequest

    def run(self, seed: int) -> RunDirectory:
        """Where the training with a seed goes."""
        return RunDirectory(self.folder / f"{self.recipe.protocol}-seed{seed}", "--out")

    def evaluate(self, seed: int) -> Score:
        """Trains, and scores the network of the last epoch."""
        data = self._data(seed)
        data.check_scored(self.split)
        # A multiple of ten: of its ten validations the last one is the last epoch's.
        epochs = self.recipe.epochs or max(EPOCHS, 10 * -(-STEPS // (10 * data.steps)))
        session = Session(self.run(seed), "--resume", "--epochs", self.stop)
        config = self._config(seed, epochs, data)
        try:
            session.claim(config, resume=self.resume)
            accuracies = self._train(session, config, seed, data, epochs)
        except BaseException as error:
            session.end(error)
            session.discard()
            raise
        session.end()
        return Score(chosen={"labels": data.labels, "epochs": epochs}, **accuracies)

    def _train(
        self,
        session: Session,
        config: dict[str, Any],
        seed: int,
        data: LabelledDataModule,
        epochs: int,
    ) -> dict[str, float]:
        model = self._model(seed, data)
        with refused_by_lightning(asdict(self.choice), building=True):
            trainer = self._trainer(session, config, epochs)
        check_trainer(trainer, training=True)
        trainer.print(
            f"{session.run.path}: {data.labels} labelled images, {epochs} epochs of {data.steps} x "
            f"{data.batch_size} images"
        )
        if is_rank_zero():
            save_config(session.run, config)
        session.train(trainer, model, data)
        score = trainer.validate if self.split == "val" else trainer.test
        score(model, data, verbose=False)
        return model.accuracies

    def _data(self, seed: int) -> LabelledDataModule:
        run = self.run(seed)
        resumed = self.resume and run.last_checkpoint.exists()
        data = self.pretrained.data(
            LabelledDataModule,
            kept_by(run, run.last_checkpoint) if resumed else None,
            label_fraction=self.recipe.label_fraction,
            batch_size=self.recipe.batch_size,
            seed=seed,
        )
        assert isinstance(data, LabelledDataModule)
        return data

    def _model(self, seed: int, data: LabelledDataModule) -> FineTuning:
        pretrained, recipe = self.pretrained, self.recipe
        backbone = load_backbone(
            pretrained.content,
            str(pretrained.checkpoint),
            recipe.from_projector_layer,
            seed if recipe.from_scratch else None,
            pretrained.own_encoder,
        )
        return FineTuning(
            backbone,
            data.num_classes,
            recipe.optimizer,
            pretrained.about,
            head_only=recipe.head_only,
            seed=seed,
        )

    def _trainer(self, session: Session, config: dict[str, Any], epochs: int) -> L.Trainer:
        choice = asdict(self.choice)
        often = max(1, epochs // 10)  # ten validations, or a few more
        callbacks = [
            StopOnNaN("lower --learning_rate"), Throughput(),
            Tracking(session.run, self.wandb, "finetune", config, self._artifact()),
            *session.callbacks(), SaveCheckpoint(often),
            LogCheckpoints(session.run, self.wandb, "finetune"),
        ]  # fmt: skip
        if choice["enable_progress_bar"]:
            callbacks.append(Progress())
        return L.Trainer(
            **choice,
            max_epochs=epochs,
            check_val_every_n_epoch=often,
            num_sanity_val_steps=0,
            logger=session.loggers(tensorboard=self.tensorboard),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(session.run.path),
            use_distributed_sampler=False,
            enable_model_summary=False,
        )

    def _config(self, seed: int, epochs: int, data: LabelledDataModule) -> dict[str, Any]:
        """What the run's config.yaml holds."""
        return {
            "seed_everything": seed,
            # What is in it decides, not where it lies: `checkpoint.` is free to change in a resume.
            "checkpoint": {"path": str(self.pretrained.checkpoint.absolute())},
            "checkpoint_sha256": sha256(self.pretrained.checkpoint),
            **self.recipe.fields,
            "labels": data.labels,
            "classes": data.num_classes,
            "data": data.arguments(),
            "trainer": {**asdict(self.choice), "max_epochs": epochs},
            "wandb": asdict(self.wandb),
            "tensorboard": self.tensorboard,
        }

    def _artifact(self) -> str | None:
        """What pretraining logged the checkpoint as."""
        if self.pretrained.run is None or self.recipe.from_scratch:
            return None
        return artifact_of(self.pretrained.run, self.pretrained.checkpoint)


def run_cli(args: list[str]) -> None:
    """The command."""
    quieten()
    call(finetune, args)
