"""The online probe: a linear classifier trained beside pretraining, on features left alone."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_pl.core.batch import UNLABELLED, EvaluationOutput, StepOutput
from simclr_pl.core.distributed import rank_and_world, sum_over_ranks
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.model.optim import on_this_device
from simclr_pl.protocols.scoring import Hits


class OnlineProbe(L.Callback):
    """A linear head on detached features, with its own optimiser (Adam), scored on clean images.

    It learns from the training step's features (augmented views, encoder in train mode) and labels,
    and is scored on the validation split's clean images with the encoder in eval mode. The numbers
    say whether pretraining is getting somewhere; they are not the offline linear evaluation.

    Gradients are summed over ranks and divided by the number of labelled rows of all ranks, so
    that the head is the same on every rank, and the same for any number of them. Unlabelled rows
    don't count. Works with any module whose steps return `StepOutput` and `EvaluationOutput`;
    without labels it does nothing.

    Args:
        learning_rate: of Adam, constant.
        weight_decay: decoupled (AdamW).

    Raises:
        UserError: a learning rate that is not above 0; labels beyond the data's classes.
    """

    def __init__(self, learning_rate: float = 1e-3, weight_decay: float = 0.0) -> None:
        check(learning_rate > 0, "probe.learning_rate", learning_rate, "above 0")
        check(weight_decay >= 0, "probe.weight_decay", weight_decay, "0 or more")
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.head: nn.Linear | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.classes = 0
        self._hits: dict[str, Hits] = {}
        self._largest: Tensor | None = None  # label
        self._restored: dict[str, Any] = {}

    # Building -------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learns the number of classes; a second fit has a new head, unless one is restored."""
        self._hits, self._largest = {}, None  # of what was broken off
        if stage == "fit":
            self.head = self.optimizer = None
            self._restored = {}
        self.classes = int(getattr(trainer.datamodule, "num_classes", 0))  # type: ignore[attr-defined]

    # Lightning validates in inference mode, whose tensors could not be trained later on.
    @torch.inference_mode(mode=False)
    def _build(self, features: Tensor) -> tuple[nn.Linear, torch.optim.Optimizer]:
        """Makes the head at the first features: their width, device and dtype are now known."""
        if self.head is None or self.optimizer is None:
            wide = torch.promote_types(features.dtype, torch.float32)
            self.head = nn.Linear(features.shape[1], self.classes).to(features.device, wide)
            # Zero weights are the same on every rank; a linear head needs no broken symmetry.
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            adam = torch.optim.AdamW(
                self.head.parameters(),
                self.learning_rate,
                weight_decay=self.weight_decay,
                fused=True,
            )
            self.optimizer = on_this_device(adam, fused=True)
            if self._restored:
                self._restore(self._restored, self.head, self.optimizer)
                self._restored = {}
        return self.head, self.optimizer

    def _restore(
        self, state: dict[str, Any], head: nn.Linear, optimizer: torch.optim.Optimizer
    ) -> None:
        if state["head"]["weight"].shape != head.weight.shape:
            there, here = (
                " x ".join(map(str, weight.shape))
                for weight in (state["head"]["weight"], head.weight)
            )
            raise UserError(
                f"the probe in the checkpoint is {there}, but this run needs {here}: resume with "
                "the data set and encoder it was trained with"
            )
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        self._hits["train"] = Hits(self.classes, head.weight.device)
        if rank_and_world()[0] == 0:  # counts of all ranks, so far
            counts = state["counts"].to(head.weight.device)
            self._hits["train"].merge_state({"counts": counts})

    # Training -------------------------------------------------------------------------------------

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: StepOutput, *_: Any
    ) -> None:
        """One step of the head on all views' features."""
        if not self.classes:
            return
        features = outputs["features"].detach()
        labels = self._check(outputs["labels"])
        head, optimizer = self._build(features)
        # Precision plugins wrap the module's steps alone: here the head's own precision rules.
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            logits = head(features.to(head.weight.dtype))
            loss = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
            optimizer.zero_grad()
            loss.backward()
        total = _average_gradients(head, (labels != UNLABELLED).sum())
        # Without labels no step: momentum and weight decay would move the head on their own. A
        # fused optimiser looks at this itself, as under torch's GradScaler: nobody has to wait.
        optimizer.found_inf = (total == 0).float()  # type: ignore[attr-defined]
        optimizer.step()
        self._count("train", logits.detach(), labels)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the epoch's accuracy on augmented views."""
        self._log(pl_module, "train")

    # Evaluation -----------------------------------------------------------------------------------

    @torch.no_grad()
    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: EvaluationOutput, *_: Any
    ) -> None:
        """Scores clean images of the validation or the test split."""
        if not self.classes:
            return
        features, labels = outputs["features"], self._check(outputs["labels"])
        head = self._build(features)[0]
        logits = head(features.to(head.weight.dtype))
        self._count("test" if trainer.testing else "val", logits, labels)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the accuracies on the validation or the test split."""
        self._log(pl_module, "test" if trainer.testing else "val")

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_test_epoch_end = on_validation_epoch_end

    def _count(self, split: str, logits: Tensor, labels: Tensor) -> None:
        if split not in self._hits:
            self._hits[split] = Hits(self.classes, logits.device)
        self._hits[split].update(logits, labels)

    def _check(self, labels: Tensor) -> Tensor:
        """Returns the labels without those beyond the classes, which are refused sooner or later.

        On a CPU they are refused now. On an accelerator a look at them would wait for the device,
        and is taken when the epoch is logged.
        """
        if len(labels):
            largest = labels.max()
            self._largest = largest if self._largest is None else self._largest.maximum(largest)
        if labels.is_cpu:
            self._refuse_beyond()
        return labels.where(labels < self.classes, UNLABELLED)

    def _refuse_beyond(self) -> None:
        if self._largest is not None and self._largest >= self.classes:
            raise UserError(
                f"there is a label {int(self._largest)}, but the data has {self.classes} classes: "
                "labels go from 0 to the number of classes less one, and -1 means unlabelled"
            )

    def _log(self, pl_module: L.LightningModule, split: str) -> None:
        self._refuse_beyond()
        if split not in self._hits:
            return
        for name, value in self._hits.pop(split).compute().items():
            if split != "train" or name == "top1":
                # Values, since Lightning cannot keep a callback's metrics. They are over all ranks
                # already; their mean over ranks, which Lightning insists on, is the same.
                many = rank_and_world()[1] > 1
                pl_module.log(f"probe/{split}_{name}", value, sync_dist=many)

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The head, its optimiser, and the training epoch's counts over all ranks."""
        if self.head is None or self.optimizer is None:
            return self._restored
        hits = self._hits.get("train", Hits(self.classes, self.head.weight.device))
        with hits.sync_context():
            counts = hits.counts.cpu()
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": counts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the next features give the head's width and device."""
        self._restored = state_dict
        if state_dict:
            self.head = self.optimizer = None


def _average_gradients(head: nn.Linear, labelled: Tensor) -> Tensor:
    """Turns gradients of sums into the gradient of the mean over all ranks' labelled rows.

    Returns:
        How many there are, a scalar.
    """
    grads = [p.grad for p in head.parameters() if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in grads), labelled.to(grads[0].dtype)[None]])
    flat = sum_over_ranks(flat)
    flat[:-1] /= flat[-1].clamp(min=1)
    for grad, mean in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
    return flat[-1]
