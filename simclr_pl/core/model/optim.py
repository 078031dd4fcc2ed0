"""Optimisers, parameter groups and the learning rate's schedule."""

import fnmatch
import math
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from simclr_pl.core.errors import UserError, check
from simclr_pl.core.lightning_internals import AnyConv, find_training_batches
from simclr_pl.core.lookup import Choice, accepted, construct, lookup
from simclr_pl.core.model.lars import Lars

OPTIMIZERS = {
    "sgd": "torch.optim.SGD",
    "adamw": "torch.optim.AdamW",
    "lars": "simclr_pl.core.model.lars.Lars",
}
"""Names of optimisers, and their class paths."""

SCHEDULES = {"cosine": "simclr_pl.core.model.optim.WarmupCosine"}
"""Names of schedules, and their class paths."""

COSINE = Choice("cosine", None, {})

Interval = Literal["epoch", "step"]
Scaling = Literal["linear", "sqrt", "none"]


class OptimizerSettings(NamedTuple):
    """How the weights are moved.

    Attributes:
        optimizer: `sgd` (momentum), `adamw`, `lars` (You et al. 2017, the paper's choice), or the
            name of `own`.
        learning_rate: the peak for a global batch of 256 images; see `peak_learning_rate`.
        lr_scaling: how the peak follows the global batch.
        weight_decay: on weights; what is none (`split_parameters`) has neither decay nor LARS
            adaptation.
        momentum: of SGD and LARS; AdamW's first beta.
        warmup_epochs: epochs of linear warm-up, a step at a time.
        nesterov: whether SGD looks ahead.
        own: another optimiser's class.
    """

    optimizer: str
    learning_rate: float
    lr_scaling: Scaling
    weight_decay: float
    momentum: float
    warmup_epochs: float
    nesterov: bool = False
    own: Choice | None = None

    def check(self, group: str = "model.") -> None:
        """Raises `UserError` for values that no run could mean; keys are named with `group`."""
        known, scalings = self.own or self.optimizer in OPTIMIZERS, get_args(Scaling)
        for fits, key, wanted in (
            (known, "optimizer", f"one of {', '.join(OPTIMIZERS)}"),
            (self.lr_scaling in scalings, "lr_scaling", f"one of {', '.join(scalings)}"),
            (self.learning_rate > 0, "learning_rate", "above 0"),
            (self.weight_decay >= 0, "weight_decay", "0 or more"),
            (0 <= self.momentum < 1, "momentum", "at least 0 and below 1"),
            (self.warmup_epochs >= 0, "warmup_epochs", "0 or more"),
        ):
            check(bool(fits), f"{group}{key}", getattr(self, key), wanted)


def peak_learning_rate(settings: OptimizerSettings, global_batch: int) -> float:
    """The learning rate after warm-up.

    Linear: `learning_rate x batch / 256` (the paper's section 2.2: 0.3 x batch / 256). Square root:
    `learning_rate x sqrt(batch / 256)`; the paper's 0.075 x sqrt(batch) (appendix B.1) is a
    `learning_rate` of 1.2.

    Args:
        settings: scaling and the rate at 256.
        global_batch: images a step, over all devices.
    """
    ratio = global_batch / 256
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[settings.lr_scaling]
    return settings.learning_rate * factor


def warmup_steps(settings: OptimizerSettings, trainer: L.Trainer) -> int:
    """Optimiser steps of warm-up."""
    return round(settings.warmup_epochs * int(trainer.num_training_batches))


def configure(
    module: L.LightningModule, settings: OptimizerSettings, schedule: Choice, interval: Interval
) -> OptimizerLRScheduler:
    """What a module's `configure_optimizers` returns; steps and global batch are the trainer's.

    Args:
        module: whose parameters, with its trainer.
        settings: of the optimiser.
        schedule: of `SCHEDULES`, which step by step, or a class of torch's.
        interval: when such a class steps.

    Raises:
        UserError: a cosine without an end; as `build_optimizer` and `build_schedule`.
    """
    trainer = module.trainer
    total, cosine = trainer.estimated_stepping_batches, schedule.name in SCHEDULES
    if cosine and total == math.inf:
        raise UserError(
            "the learning rate's cosine needs an end: give --trainer.max_epochs or max_steps"
        )
    # With max_steps alone Lightning knows the steps before it has counted an epoch's batches.
    find_training_batches(trainer)
    peak = peak_learning_rate(settings, trainer.datamodule.batch_size)  # type: ignore[attr-defined]
    optimizer = build_optimizer(module, settings, peak, fused=may_fuse(trainer))
    scheduler: Any = (
        WarmupCosine(optimizer, warmup_steps(settings, trainer), int(total))
        if cosine
        else build_schedule(schedule, optimizer)
    )
    every = "step" if cosine else interval
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": every}}


def build_optimizer(
    modules: nn.Module, settings: OptimizerSettings, learning_rate: float, *, fused: bool = True
) -> Optimizer:
    """The optimiser over all parameters that want a gradient, in two groups: decay, no decay.

    An optimiser of one's own has these groups where its class knows of weight decay, and an `lr` of
    its own is taken as it stands.

    Args:
        modules: whose parameters.
        settings: which optimiser, and how.
        learning_rate: of all parameters.
        fused: whether one kernel may do for all parameters, on CUDA (SGD, AdamW; LARS works on
            lists of parameters there by itself); the same to rounding.

    Raises:
        UserError: arguments that its class refuses, or something that makes no optimiser.
    """
    weights, others = split_parameters(modules)
    # On a CPU the fused SGD copies weights that are channels-last, and takes twice the time.
    fused = fused and all(p.is_cuda for p in [*weights, *others])
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    choice = settings.own or lookup(settings.optimizer, OPTIMIZERS, "model.optimizer")
    args, parameters = dict(choice.args), groups
    if choice.target is Lars:
        groups[1]["adapt"] = False
    if accepted(choice.target, {"weight_decay": 0.0}):
        groups[0]["weight_decay"] = args.pop("weight_decay", settings.weight_decay)
    else:
        parameters = [parameter for group in groups for parameter in group["params"]]
    ours: dict[str, Any] = {}
    if choice.name in OPTIMIZERS:
        ours = {"momentum": settings.momentum, "betas": (settings.momentum, 0.999)}
        ours |= {"nesterov": settings.nesterov, "fused": fused}
    bound = Choice(choice.name, partial(choice.target, parameters), args)
    optimizer = construct(bound, "model.optimizer", lr=learning_rate, **ours)
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"model.optimizer is {choice.name}, which makes a {type(optimizer).__name__}: give a "
            "class of torch's or timm's kind, as torch.optim.Adam"
        )
    return on_this_device(optimizer, fused) if ours and "fused" in optimizer.defaults else optimizer


def build_schedule(choice: Choice, optimizer: Optimizer) -> LRScheduler:
    """A schedule of any class of torch's kind.

    Raises:
        UserError: arguments that it refuses, or something that makes no schedule.
    """
    bound = Choice(choice.name, partial(choice.target, optimizer), choice.args)
    schedule = construct(bound, "model.schedule")
    if not isinstance(schedule, LRScheduler) or hasattr(schedule, "num_bad_epochs"):
        raise UserError(
            f"model.schedule is {choice.name}, which is no schedule that steps by itself: give a "
            "class of torch.optim.lr_scheduler other than ReduceLROnPlateau"
        )
    return schedule


def split_parameters(modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that want a gradient: weights, and what is none, each in the modules' order.

    No weights are vectors, whatever axes of length 1 they have beside (biases, norms, class tokens,
    timm's affine and scale parameters), and what a module's own `no_weight_decay` names, as timm's
    transformers do of positions and tables of biases. The `weight` of a linear layer or convolution
    is one, however narrow.
    """
    named = _without_decay(modules)
    layers = (m for m in modules.modules() if isinstance(m, nn.Linear | AnyConv))
    matrices = {layer.weight for layer in layers}
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in modules.named_parameters():
        narrow = parameter.squeeze().ndim <= 1 and parameter not in matrices
        if parameter.requires_grad:
            (others if narrow or parameter.ndim <= 1 or name in named else weights).append(
                parameter
            )
    return weights, others


def _without_decay(modules: nn.Module) -> set[str]:
    """Names of parameters that modules themselves want without decay; `*` stands for anything."""
    names = [name for name, _ in modules.named_parameters()]
    found: set[str] = set()
    for path, module in modules.named_modules():
        if callable(getattr(module, "no_weight_decay", None)):
            above = f"{path}." if path else ""
            for pattern in module.no_weight_decay():
                # Some give the last part of a name alone.
                found |= {*fnmatch.filter(names, f"{above}{pattern}")}
                found |= {*fnmatch.filter(names, f"{above}*.{pattern}")}
    return found


def on_this_device(optimizer: Optimizer, fused: bool) -> Optimizer:
    """Fused or not as here, also behind a resume from a run on another device.

    Set before the state is loaded: torch brings `step` to the device of fused optimisers alone.
    """

    def as_here(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "fused": fused} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(as_here)
    return optimizer


def may_fuse(trainer: L.Trainer) -> bool:
    """Whether a fused optimiser goes with a trainer's precision.

    With a scaler of float16's loss it would unscale the gradients itself: behind their clipping and
    their logged norm. Lightning refuses to clip under any mixed precision for that reason.
    """
    precision = str(trainer.precision)
    clips = bool(trainer.gradient_clip_val) and precision.endswith("mixed")
    return precision != "16-mixed" and not clips


class WarmupCosine(LambdaLR):
    """Linear warm-up to the peak, then a cosine to zero without restarts, a step at a time.

    Sources: the paper's section 2.2; google-research/simclr `WarmUpAndCosineDecay`. Step 0
    trains at 1/warmup_steps of the peak instead of the authors' 0, which would waste it.

    Args:
        optimizer: whose rates are the peak's.
        warmup_steps: optimiser steps of warm-up.
        total_steps: optimiser steps in all.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

        super().__init__(optimizer, factor)

    def catch_up(self) -> None:
        """Sets the rates of this schedule's own present step.

        A resume has the rates that the checkpoint's schedule had chosen, which may have had
        another end.
        """
        groups = self.optimizer.param_groups
        for group, base, factor in zip(groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
