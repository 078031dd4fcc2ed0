"""When a run goes wrong: collapse, a loss stuck at chance, divergence. Each is said once.

The warnings judge means over windows of at least `WINDOW` steps, so that neither a single batch nor
`every_n_steps` decides. Four usual sights give no warning: a warm-up that hasn't begun to learn, a
small temperature's start far above chance, a little rise at the peak of the learning rate, and a
run that starts from trained weights and hardly moves.
"""

import math
from typing import Any, NamedTuple

from simclr_pl.monitors.health_metrics import StepHealth

WINDOW = 50
"""Optimiser steps of a window, at least."""

WARN_AFTER_WINDOWS = 3
"""Windows in a row that must look collapsed or diverged."""

STUCK_AFTER = 8
"""Windows without a move before the loss is called stuck: 400 steps outlast a short warm-up."""

SAME = 0.05
"""A standard deviation on the sphere (1: spread out) below which all images look the same.

Untrained ResNets and transformers have 0.5 to 1."""

A_LINE = 1.02
"""An effective dimension below which projections lie on a line through the origin.

Behind a batch norm they cannot be equal. Equal ones with a standard deviation of 0.1 have 1.02; a
healthy run at temperature 0.05 may begin with 1.05, without batch norm."""


class Window(NamedTuple):
    """Consecutive steps, over all ranks.

    Attributes:
        loss: the mean over the window's steps.
        chance: the loss where no view knows its own image (log(2N - 1) for NT-Xent); `None` where
            the objective states none, whose loss is then not judged.
        last: the health of the window's last step.
        steps: number of steps since the run began.
    """

    loss: float
    chance: float | None
    last: StepHealth
    steps: int


class Trouble:
    """Looks at one window after the other, and has a sentence for each kind of trouble once."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "windows": 0, "first": 0.0, "best": 0.0, "collapsed": 0, "diverged": 0, "said": [],
        }  # fmt: skip
        """Plain numbers and names, for the checkpoint."""

    def look(self, window: Window) -> list[str]:
        """Sentences that have not been said before."""
        state = self.state
        if not math.isfinite(window.loss):  # the run is over, and says so: see StopOnNaN
            return []
        if not state["windows"]:
            state["first"] = state["best"] = window.loss
        state["windows"] += 1
        state["collapsed"] = state["collapsed"] + 1 if _collapsed(window) else 0
        state["diverged"] = state["diverged"] + 1 if self._is_up(window) else 0
        state["best"] = min(state["best"], window.loss)
        found = {
            "collapse": state["collapsed"] >= WARN_AFTER_WINDOWS,
            "divergence": state["diverged"] >= WARN_AFTER_WINDOWS,
            "stuck": state["windows"] >= STUCK_AFTER and self._has_not_moved(window),
        }
        new = [kind for kind, there in found.items() if there and kind not in state["said"]]
        state["said"] = [*state["said"], *new]
        return [_SENTENCES[kind](window, state["best"]) for kind in new]

    def _is_up(self, window: Window) -> bool:
        """Half of what had been gained is lost again, or more than there was to lose."""
        if window.chance is None:
            return False
        start: float = max(window.chance, self.state["first"])
        gained = start - self.state["best"]
        lost = window.loss - self.state["best"]
        return window.loss > 1.1 * start or (gained > 0.1 * window.chance and lost > 0.5 * gained)

    def _has_not_moved(self, window: Window) -> bool:
        """As at first, at chance or above: trained runs have 0.86 of it at a temperature of 1."""
        if window.chance is None:
            return False
        moved: float = self.state["first"] - self.state["best"]
        return window.loss > 0.9 * window.chance and moved < 0.02 * window.chance


def _collapsed(window: Window) -> bool:
    # A few images lie on a line by right: two are best told apart when they are opposite.
    last = window.last
    line = last.images >= 16 and last.dimension < A_LINE
    return line or min(last.feature_std, last.projection_std) < SAME


def _collapse(window: Window, best: float) -> str:
    return (
        f"warning: the representation has collapsed by step {window.steps} (standard deviation of "
        f"features {window.last.feature_std:.3f}, of projections {window.last.projection_std:.3f}, "
        f"effective dimension of projections {window.last.dimension:.1f}): all images look nearly "
        "the same to the network; start anew with a lower --model.learning_rate, a longer "
        "--model.warmup_epochs, and a larger --data.batch_size if it is below 64"
    )


def _divergence(window: Window, best: float) -> str:
    return (
        f"warning: the loss diverges: {window.loss:.2f} at step {window.steps}, after {best:.2f} "
        f"at its best (chance is {window.chance:.2f}); start anew with a lower "
        "--model.learning_rate (a third, say) or a longer --model.warmup_epochs"
    )


def _stuck(window: Window, best: float) -> str:
    return (
        f"warning: the loss is stuck at {window.loss:.2f} after {window.steps} steps (chance is "
        f"{window.chance:.2f}): nothing is being learned; try another --model.learning_rate (3 "
        "times as high, or a third if it was high), and look with `python -m simclr_pl views` "
        "whether the two views still show the same thing"
    )


_SENTENCES = {"collapse": _collapse, "divergence": _divergence, "stuck": _stuck}
