"""Fine-tuning: a classifier on the pretrained network, trained with few labels or with all."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from simclr_pl.core.distributed import sum_over_ranks
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.lookup import Door
from simclr_pl.core.model.batch_norm import globalise_batch_norm
from simclr_pl.core.model.checkpoint import KEY, read_checkpoint
from simclr_pl.core.model.geometry import check_channels, geometry_in, geometry_of
from simclr_pl.core.model.log import is_logged, log_learning_rate
from simclr_pl.core.model.optim import OptimizerSettings
from simclr_pl.core.model.trained import TrainedModule
from simclr_pl.core.randomness import run_seed, step_seed
from simclr_pl.images.splits import no_labels
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.labelled_datamodule import LabelledImages
from simclr_pl.protocols.scoring import Hits

EPOCHS = 60
"""The paper's for 1 % of ImageNet's labels (appendix B.5)."""

STEPS = 1000
"""Of few images at least, which takes more epochs: 540 images make 3 steps in each."""

FROM_PRETRAINED = 0.05
"""The paper's learning rate for a batch of 256 (appendix B.5)."""

FROM_SCRATCH = 0.2
"""The baseline's own: of 0.05, 0.2 and 0.5 the best on Fashion-MNIST's val, with 1 % of labels."""

DECIDES = {
    "label_fraction": "data.label_fraction",
    "from_projector_layer": "model.from_projector_layer",
    "from_scratch": "model.from_scratch",
    "head_only": "model.head_only",
    "batch_size": "data.batch_size",
    "learning_rate": "model.learning_rate",
    "weight_decay": "model.weight_decay",
}
"""What decides a result beside checkpoint and data: its name in results, and its option."""


class FineTuning(TrainedModule):
    """Cross-entropy on labelled images, through the whole network or its new last layer alone.

    The classifier starts at zero. The defaults follow Chen et al. 2020, appendix B.5: SGD with
    Nesterov momentum, no weight decay, no warm-up; the learning rate falls to zero on a cosine. As
    in pretraining the batch is global, and so are batch norm and the loss's mean: the number of
    devices changes nothing but the order of sums.

    Args:
        checkpoint: a training checkpoint, or an exported encoder.
        from_projector_layer: keep so many layers of the projection head below the classifier
            (SimCLR v2 keeps 1; 0 is the encoder alone).
        from_scratch: the supervised baseline: the same network from fresh weights.
        head_only: train the classifier alone, on the network in eval mode.
        learning_rate: the peak for a batch of 256 images; it follows the batch (the command's
            default is 0.2 from scratch).
        weight_decay: on weights; biases, norms, tokens and tables of positions have none.
        encoder: its class, if it is your own (default: as the checkpoint's run names it).
        seed: of fresh weights and dropout (default: what `seed_everything` was given, or 0).

    Raises:
        UserError: a checkpoint that cannot be read or used; a value out of its range.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        from_projector_layer: int = 0,
        from_scratch: bool = False,
        head_only: bool = False,
        learning_rate: float = FROM_PRETRAINED,
        weight_decay: float = 0.0,
        encoder: Door | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.optimization = OptimizerSettings(
            "sgd", learning_rate, "linear", weight_decay, 0.9, 0, nesterov=True
        )
        self.optimization.check("")
        layers = from_projector_layer
        check(layers >= 0, "from_projector_layer", layers, "at least 0")
        if from_scratch and head_only:
            raise UserError(
                "--from_scratch trains the whole network, and --head_only its last layer alone: "
                "give one of them"
            )
        self.seed, content = run_seed(seed), read_checkpoint(checkpoint)
        fresh = self.seed if from_scratch else None
        backbone = load_backbone(content, checkpoint, layers, fresh, encoder)
        self.encoder = backbone.encoder.to(memory_format=torch.channels_last)
        self.projector, self.width, self.spec = backbone.projector, backbone.width, backbone.spec
        self.head: nn.Linear
        self.hits: Hits
        if head_only:
            # Lightning trains in the modes that it finds.
            self.encoder.eval().requires_grad_(False)
            self.projector.eval().requires_grad_(False)
        self.geometry = geometry_in(content[KEY])
        self.accuracies: dict[str, float] = {}
        """`top1` and, of six classes or more, `top5` of the last evaluation: fractions."""

    def configure_model(self) -> None:
        """Lightning's hook: in the run's precision before a checkpoint's weights come in."""
        assert self.geometry is not None
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        check_channels(self.geometry, geometry_of(data))
        if not hasattr(self, "head"):
            self.add_head(data.num_classes)
        self.to(torch.get_default_dtype())
        if self.trainer.world_size > 1:
            globalise_batch_norm(self, self.trainer.strategy.root_device)

    def add_head(self, classes: int) -> None:
        """Puts the classifier on, at zero; by default for the classes of the trainer's data."""
        self.head = nn.Linear(self.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.hits = Hits(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, C]` of images: float `[B, C, S, S]`, normalised."""
        images = images.to(self.dtype, memory_format=torch.channels_last)
        logits: Tensor = self.head(self.projector(self.encoder(images)))
        return logits

    # Training ---------------------------------------------------------------------------------

    def training_step(self, batch: LabelledImages, batch_idx: int) -> Tensor:
        """Mean cross-entropy over the global batch."""
        torch.manual_seed(step_seed(self.seed, self.trainer.global_step, self.trainer.global_rank))
        logits = self(batch.images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits, batch.labels, reduction="sum")
        rows = sum_over_ranks(total.new_full((), len(batch.labels)))
        # DDP averages over ranks, which may hold different numbers of images.
        loss = total * self.trainer.world_size / rows
        if is_logged(self.trainer):
            self.log("finetune/loss", loss.detach(), sync_dist=self.trainer.world_size > 1)
            log_learning_rate(self)
        return loss

    # Evaluation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begins to count."""
        self.hits.reset()

    def validation_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Counts labelled images, each once over all ranks, and those classified right."""
        self.hits.update(self(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Logs `finetune/val_top1` and, of six classes or more, `finetune/val_top5`."""
        self._log_accuracies("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Logs `finetune/test_top1` and, of six classes or more, `finetune/test_top5`."""
        self._log_accuracies("test")

    def _log_accuracies(self, split: str) -> None:
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.accuracies = self.hits.compute()
        if not self.accuracies and fitting:
            return  # a curve less; it may be another split that is to be scored
        if not self.accuracies:
            raise no_labels(split)
        numbers = {f"finetune/{split}_{name}": value for name, value in self.accuracies.items()}
        if not fitting:  # after the last epoch, not in one more
            numbers["epoch"] = float(self.trainer.current_epoch - 1)
        # The same on every rank; Lightning would rather see it for itself.
        self.log_dict(numbers, sync_dist=self.trainer.world_size > 1)
