"""SimCLR as a LightningModule: encoder, projector, loss and optimisation put together."""

from typing import Any, Self

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from simclr_pl.core.batch import EvaluationBatch, EvaluationOutput, MicroBatches, StepOutput, Views
from simclr_pl.core.distributed import rank_and_world, sum_over_ranks
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.lightning_internals import restricted_classmethod
from simclr_pl.core.lookup import Door, lookup, written
from simclr_pl.core.model import checkpoint as checkpoints
from simclr_pl.core.model import optim
from simclr_pl.core.model.batch_norm import globalise_batch_norm
from simclr_pl.core.model.encoder import Stem
from simclr_pl.core.model.geometry import check_channels, geometry_in, geometry_of
from simclr_pl.core.model.log import is_logged, log_step
from simclr_pl.core.model.network import FROM_FILE, build_network, choose, initialising
from simclr_pl.core.model.objective import OBJECTIVES, Outcome, build_objective, outcome_of
from simclr_pl.core.model.trained import TrainedModule
from simclr_pl.core.randomness import run_seed, step_seed
from simclr_pl.core.speed.compiler import check_compiler
from simclr_pl.core.speed.micro_batches import encode_in_parts


class SimCLR(TrainedModule):
    """SimCLR (Chen et al. 2020; with three projector layers, v2).

    The network is built when its data is known: for the channels, image size and statistics of the
    trainer's data module, or for those in a checkpoint. Its initial weights depend on `seed` alone.
    A model may be fitted again on other data with as many channels: checkpoints name the size and
    the statistics of the images that it was last trained on, and the stem that it was built with.

    `encoder`, `objective`, `optimizer` and `schedule` are doors: each takes a name, a class path
    (`mine.Net`), `{class_path: mine.Net, init_args: {...}}`, and from Python a class or an object.

    Args:
        encoder: a torchvision ResNet's name (resnet18, ...), any timm model's, mlp, or one's own
            module, `[B, C, S, S]` to `[B, D]`, which gets `channels` and `image_size` if it names
            them.
        encoder_args: further keyword arguments of its constructor, or its library's weights to
            start from (`pretrained: true`).
        stem: `small` is a 3x3 convolution of stride 1 without max-pool, `medium` the same with
            stride 2, `imagenet` the library's own, `auto` chooses small for ResNets up to 64 px
            (the paper's appendix B.9).
        projector_layers: linear layers of the projection head (v1: 2, v2: 3).
        projector_hidden: width of its hidden layers (default: the encoder's feature width).
        projection_dim: width P of its output.
        objective: nt_xent, or one's own (`simclr_pl.core.model.objective.Objective`), which gets
            `temperature` if it names it.
        temperature: of NT-Xent, above 0.
        loss_block_size: side of the loss's similarity blocks, in rows; no effect on results.
        optimizer: sgd, adamw, lars, or a class as torch.optim.Adam, whose own `lr` isn't scaled.
        schedule: cosine (with `warmup_epochs`), or a class of torch.optim.lr_scheduler.
        schedule_interval: when such a class steps: epoch or step.
        learning_rate: the peak for a global batch of 256 images.
        lr_scaling: how the peak follows the global batch: linear, sqrt, or none.
        weight_decay: on weights; biases, norms, tokens and tables of positions never decay.
        momentum: of SGD and LARS; AdamW's first beta.
        warmup_epochs: epochs of linear warm-up, before the cosine to zero.
        global_batch_norm: batch norm over all devices' images, as one device would compute it.
        micro_batch_size: images that go through the encoder at a time, global like `batch_size`
            (default: all of a batch). The loss is still that of the whole batch, in less memory,
            for one more forward pass; batch norm then sees a micro-batch at a time.
        compiled: compile encoder and projector for training: the same to rounding; `fit` needs a
            C++ compiler, which the first step and the first validation wait for.
        seed: of the initial weights (default: what `seed_everything` was given, or 0).

    Raises:
        UserError: a value out of its range, or (once the data is known) an encoder that doesn't
            fit.
    """

    def __init__(
        self,
        encoder: Door = "resnet18",
        encoder_args: dict[str, Any] | None = None,
        stem: Stem = "auto",
        projector_layers: int = 2,
        projector_hidden: int | None = None,
        projection_dim: int = 128,
        objective: Door = "nt_xent",
        temperature: float = 0.5,
        loss_block_size: int = 512,
        optimizer: Door = "lars",
        schedule: Door = "cosine",
        schedule_interval: optim.Interval = "epoch",
        learning_rate: float = 0.3,
        lr_scaling: optim.Scaling = "linear",
        weight_decay: float = 1e-6,
        momentum: float = 0.9,
        warmup_epochs: float = 10,
        global_batch_norm: bool = True,
        micro_batch_size: int | None = None,
        compiled: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        doors = {
            "encoder": encoder, "objective": objective,
            "optimizer": optimizer, "schedule": schedule,
        }  # fmt: skip
        self.save_hyperparameters(ignore=list(doors))
        self.hparams.update(
            {name: written(given, f"model.{name}") for name, given in doors.items()}
        )
        self.given_encoder = choose("encoder", encoder)
        self.schedule = choose("schedule", schedule, optim.SCHEDULES)
        self.schedule_interval = schedule_interval
        own = choose("optimizer", optimizer, optim.OPTIMIZERS)
        self.optimization = optim.OptimizerSettings(
            own.name, learning_rate, lr_scaling, weight_decay, momentum, warmup_epochs,
            own=own if own.args or own.name not in optim.OPTIMIZERS else None,
        )  # fmt: skip
        self.optimization.check()
        fits = micro_batch_size is None or micro_batch_size >= 1
        check(fits, "model.micro_batch_size", micro_batch_size, "at least 1 image")
        self.micro_batch_size = micro_batch_size
        self.seed = run_seed(seed)
        chosen = choose("objective", objective, OBJECTIVES)
        self.objective_name = chosen.name
        with initialising(self.seed):
            self.objective = build_objective(
                chosen, temperature=temperature, block_size=loss_block_size
            )
        self.encoder: nn.Module
        self.projector: nn.Module
        self.pretrained: Any = None
        """The library's weights that the recipe asks for; `None` once any weights have come."""
        self.stem_built = ""

    # Building ---------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Lightning's hook after the data's `setup`: builds the network once."""
        if not self._has_trainer():
            return  # `load_from_checkpoint` asks, and `on_load_checkpoint` will build
        given = geometry_of(getattr(self.trainer, "datamodule", None))
        if self.geometry is None:
            if given is None:
                raise UserError(
                    "SimCLR needs a data module to learn the images' size from: "
                    "Trainer(...).fit(SimCLR(...), ContrastiveDataModule(...))"
                )
            build_network(self, given)
        else:
            check_channels(self.geometry, given)
        if self.hparams["global_batch_norm"] and self.trainer.world_size > 1:
            globalise_batch_norm(self, self.trainer.strategy.root_device)
        if self.hparams["compiled"] and self.trainer.state.fn == TrainerFn.FITTING:
            check_compiler("model.compiled")
            # In place: names in checkpoints stay as they are.
            self.encoder.compile()
            self.projector.compile()

    def _has_trainer(self) -> bool:
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    # Checkpoints ------------------------------------------------------------------------------

    @restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805
        checkpoint_path: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        """As Lightning's, of a file whose checksums fit.

        A class that the file names is not imported: whoever wants it hands it over, as in
        `SimCLR.load_from_checkpoint(path, encoder=Net)`.
        """
        checkpoints.check_whole(checkpoint_path)
        token = FROM_FILE.set(frozenset(kwargs))
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        finally:
            FROM_FILE.reset(token)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the network a checkpoint was written for, if no data module has done so.

        Raises:
            UserError: a network has been built, and is another one.
        """
        if self._has_trainer():  # one from Python reads with Lightning's own function
            checkpoints.check_whole(self.trainer.ckpt_path)
        about = checkpoints.describe(checkpoint, "the checkpoint")
        geometry = geometry_in(about)
        if self.geometry is None:
            build_network(self, geometry, checkpoints.stem_in(about))
        else:
            checkpoints.check_stem(about, self.spec, "the checkpoint")
            if self.strict_loading:
                checkpoints.check_weights(self, checkpoint["state_dict"], "the checkpoint")
        self.geometry, self.pretrained = geometry, None

    # Training ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Loads the library's weights where the recipe asks for them and no checkpoint came."""
        if self.pretrained:  # (A ring's, looked up where it is needed.)
            lookup("simclr_pl.protocols.start_weights.pretrained", {}, "pretrained").target(self)

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def forward(self, images: Tensor) -> Tensor:
        """Features of images: float `[B, C, S, S]`, normalised, to `[B, D]`."""
        images = self._input(images)
        rows = len(images)
        if self.micro_batch_size and not self.training:
            # In training, parts come one at a time; in eval mode they make no difference.
            rows = 2 * -(-self.micro_batch_size // rank_and_world()[1])
        return torch.cat([self.encoder(part) for part in images.split(rows)])

    def _input(self, images: Tensor) -> Tensor:
        return images.to(self.dtype, memory_format=torch.channels_last)

    def training_step(self, batch: Views | MicroBatches, batch_idx: int) -> StepOutput:
        """The loss of both views of all images.

        Layers that draw (dropout, stochastic depth) are seeded by step and rank: their masks are
        the one thing that depends on the number of devices, but not on an interruption.
        """
        torch.manual_seed(step_seed(self.seed, self.trainer.global_step, self.trainer.global_rank))
        features = self._features(batch)
        projections = self.projector(features)
        outcome = self._outcome(features, projections, batch)
        output = StepOutput(
            loss=outcome.loss,
            features=features.detach(),
            projections=projections.detach(),
            labels=batch.labels,
            positive_rank=outcome.positive_rank,
            chance=outcome.chance,
        )
        if is_logged(self.trainer):
            log_step(self, output, outcome.metrics)
        return output

    def _features(self, batch: Views | MicroBatches) -> Tensor:
        """One pass over both views, concatenated as in the authors' code; or one a micro-batch.

        Batch norm therefore sees both views of an image together, and moves once a step.
        """
        if isinstance(batch, MicroBatches):
            return encode_in_parts(
                self.encoder, batch.parts, lambda part: self._input(batch.make_views(part).views)
            )
        if self.micro_batch_size and len(batch.labels) // batch.per_image > self.micro_batch_size:
            raise UserError(
                "model.micro_batch_size needs a data module whose training batches are "
                "simclr_pl.core.batch.MicroBatches, as ContrastiveDataModule's are"
            )
        features: Tensor = self(batch.views)
        return features

    def _outcome(self, features: Tensor, projections: Tensor, batch: Any) -> Outcome:
        return outcome_of(self.objective(features, projections, batch), self.objective_name)

    # Evaluation -------------------------------------------------------------------------------

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> EvaluationOutput:
        """Features of the clean images, and the loss of their views, in eval mode."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> EvaluationOutput:
        """As `validation_step`, on the test split."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: EvaluationBatch, batch_idx: int) -> EvaluationOutput:
        """Features of the clean images."""
        return EvaluationOutput(features=self(batch.clean), labels=batch.labels, index=batch.index)

    def _evaluate(self, batch: EvaluationBatch, split: str) -> EvaluationOutput:
        assert batch.views is not None
        features = self(batch.views.views)
        projections = self.projector(features)
        many = self.trainer.world_size > 1
        # The loss is a mean over this global batch: weighted by its rows, each image counts once.
        images = batch.labels.numel()
        rows = int(sum_over_ranks(projections.new_full((), images, dtype=torch.float32)))
        if rows < 2:  # the others could not be read, and one image has no negatives
            return self.predict_step(batch, 0)
        self.log(
            f"{split}/loss",
            self._outcome(features, projections, batch.views).loss,
            on_epoch=True,
            sync_dist=many,
            batch_size=rows,
            add_dataloader_idx=False,
        )
        return self.predict_step(batch, 0)
