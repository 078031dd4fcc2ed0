"""Fine-tuning: a classifier on the pretrained network, trained with few labels or with all."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from simclr_pl.core.distributed import sum_over_ranks
from simclr_pl.core.model.batch_norm import globalise_batch_norm
from simclr_pl.core.model.geometry import check_channels, geometry_in, geometry_of
from simclr_pl.core.model.log import is_logged, log_learning_rate
from simclr_pl.core.model.optim import OptimizerRecipe
from simclr_pl.core.model.trained import TrainedModule
from simclr_pl.core.randomness import step_seed
from simclr_pl.images.splits import no_labels
from simclr_pl.protocols.backbone import Backbone
from simclr_pl.protocols.labelled_datamodule import LabelledImages
from simclr_pl.protocols.scoring import Hits

EPOCHS = 60
"""The paper's for 1 % of ImageNet's labels (appendix B.5)."""

STEPS = 1000
"""Of few images at least, which takes more epochs: 540 images make 3 steps in each."""


class FineTuning(TrainedModule):
    """Cross-entropy on labelled images, through the whole network or its new last layer alone.

    The classifier starts at zero. The defaults follow Chen et al. 2020, appendix B.5: SGD with
    Nesterov momentum, no weight decay, no warm-up; the learning rate falls to zero on a cosine. As
    in pretraining the batch is global, and so are batch norm and the loss's mean: the number of
    devices changes nothing but the order of sums.

    Args:
        backbone: encoder and layers of the projection head, from `load_backbone`.
        classes: C.
        recipe: of the optimiser.
        about: what the backbone's checkpoint says of itself.
        head_only: leave the backbone as it is, in eval mode (a linear evaluation on crops).
        seed: of masks that layers draw (dropout, stochastic depth).
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        recipe: OptimizerRecipe,
        about: dict[str, Any],
        *,
        head_only: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        recipe.check("")
        self.encoder = backbone.encoder.to(memory_format=torch.channels_last)
        self.projector = backbone.projector
        self.head = nn.Linear(backbone.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if head_only:
            # Lightning trains in the modes that it finds.
            self.encoder.eval().requires_grad_(False)
            self.projector.eval().requires_grad_(False)
        self.recipe, self.spec, self.seed = recipe, backbone.spec, seed
        self.geometry = geometry_in(about)
        self.hits = Hits(classes)
        self.accuracies: dict[str, float] = {}
        """`top1` and, of six classes or more, `top5` of the last evaluation: fractions."""

    def configure_model(self) -> None:
        """Lightning's hook: in the run's precision before a checkpoint's weights come in."""
        assert self.geometry is not None
        check_channels(self.geometry, geometry_of(self.trainer.datamodule))  # type: ignore[attr-defined]
        self.to(torch.get_default_dtype())
        if self.trainer.world_size > 1:
            globalise_batch_norm(self, self.trainer.strategy.root_device)

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
