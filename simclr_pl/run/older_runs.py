"""Runs that an older version began: their states and recipes are brought into today's form."""

import itertools
import sys
from typing import Any

import lightning as L
from torch import nn
from torch.optim import Optimizer

from simclr_pl.core.distributed import rank_and_world
from simclr_pl.core.model.lars import Lars
from simclr_pl.protocols.finetune import DECIDES

GRAYSCALE = 0.2
"""The default of `data.grayscale` until there was `data.range`; now it depends on the bands."""


class OlderRuns(L.Callback):
    """Lets optimisers load what an older version has saved."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Between the making of optimisers and the loading of their states."""
        for optimizer in trainer.optimizers:
            regroup(optimizer, pl_module)
            if isinstance(optimizer, Lars):
                optimizer.register_load_state_dict_pre_hook(from_timm)


def regroup(optimizer: Optimizer, modules: nn.Module) -> None:
    """Has an optimiser load a state whose groups were vectors and all else, as they once were."""
    parameters = [p for p in modules.parameters() if p.requires_grad]
    once = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]

    def regrouped(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        saved, own = state["param_groups"], [group["params"] for group in optimizer.param_groups]
        sizes = [len(group["params"]) for group in saved]
        if sizes == [len(group) for group in own] or sizes != [len(group) for group in once]:
            return None
        places = itertools.chain.from_iterable(group["params"] for group in saved)
        place = dict(zip(itertools.chain.from_iterable(once), places, strict=True))
        groups = [
            {**group, "params": [place[parameter] for parameter in mine]}
            for group, mine in zip(saved, own, strict=True)
        ]
        return {**state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(regrouped)


def from_timm(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """The state of a run that was begun with timm's LARS: its momentum, times its rate.

    The first step then is as long as timm's would have been; those behind it are LARS's.
    """
    if not any("momentum_buffer" in own for own in state["state"].values()):
        return None
    if rank_and_world()[0] == 0:
        sys.stdout.write(
            "This run was begun with timm's LARS, which keeps the learning rate outside the "
            "momentum: from here on it is inside, as in the paper and its authors' code\n"
        )
    rates = {place: group["lr"] for group in state["param_groups"] for place in group["params"]}
    velocities = {
        place: {"velocity": own["momentum_buffer"] * rates[place]}
        for place, own in state["state"].items()
    }
    groups = [
        {**{name: saved.get(name, value) for name, value in own.items()}, "params": saved["params"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {"state": velocities, "param_groups": groups}


def recipe_of_today(
    old: dict[str, Any], defaults: dict[str, Any], now: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A recipe in today's words.

    Args:
        old: a run's recipe, by dotted names.
        defaults: of the options that it had no names for.
        now: the recipe that it is compared with, if there is one.
    """
    if (now or {}).get("data.grayscale", 0) is None and old.get("data.grayscale") == GRAYSCALE:
        old = old if "data.range" in old else old | {"data.grayscale": None}
    if "label_fraction" not in old:
        return old
    names = {**DECIDES, "checkpoint.path": "model.checkpoint"}
    names |= {name: f"derived.{name}" for name in ("checkpoint_sha256", "labels", "classes")}
    gone = ("data.jitter", "data.grayscale", "data.blur")
    return defaults | {names.get(key, key): old[key] for key in old if key not in gone}
