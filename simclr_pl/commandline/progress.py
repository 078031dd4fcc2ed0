"""Progress of a run: a bar, or plain lines, with the time left of the whole run."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

LINE_EVERY = 10.0
"""Seconds between plain lines."""

_SHOWN = {
    "train/loss": "loss",
    "finetune/loss": "loss",
    "probe/val_top1": "probe val top-1",
    "train/contrastive_top1": "contrastive top-1",
    "val/loss": "val loss",
    "finetune/val_top1": "val top-1",
}


class Progress(ProgressBar):
    """Steps done of all steps, the latest numbers, and the time left.

    In a terminal it is a bar; elsewhere (a log file, a cluster) a line every ten seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on = True
        self._bar: Any = None
        self._last_line = 0.0
        self._said = ""
        self._start: tuple[float, int] | None = None  # when, and after which step

    def disable(self) -> None:
        """Lightning's hook, called on all ranks but the first."""
        self._on = False

    def enable(self) -> None:
        """Lightning's hook."""
        self._on = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints without breaking the bar."""
        if self._on:
            tqdm.write(" ".join(str(arg) for arg in args))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the bar; nothing is left of a fit before."""
        self._last_line, self._said, self._start = 0.0, "", None
        if self._on and sys.stdout.isatty():
            self._bar = tqdm(
                total=int(trainer.estimated_stepping_batches),
                initial=trainer.global_step,
                unit="step",
                file=sys.stdout,
                dynamic_ncols=True,
                # No room is spent on the bar itself: in 80 columns the probe's number counts.
                bar_format="{desc}{percentage:.0f}% {n_fmt}/{total_fmt} "
                "[{elapsed}<{remaining}{postfix}]",
                smoothing=0.05,
            )

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Moves the bar, or prints a line when it is time to."""
        if not self._on:
            return
        first = self._start is None
        if first:  # the time left is counted behind this step, which takes longer than any other
            self._start = (time.monotonic(), trainer.global_step)
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
            if time.monotonic() - self._last_line > 0.5:  # reading a GPU's numbers makes it wait
                self._last_line = time.monotonic()
                self._bar.set_description(_epoch(trainer).strip())
                self._bar.set_postfix_str(_numbers(trainer))
        elif time.monotonic() - self._last_line > LINE_EVERY and (not first or _numbers(trainer)):
            self._line(trainer)  # (a resumed run's first step may have logged nothing)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the last numbers."""
        if self._bar is not None:
            self._bar.set_postfix_str(_numbers(trainer))
        elif self._on:
            self._line(trainer)
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leaves the terminal in order."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, trainer: L.Trainer) -> None:
        self._last_line = time.monotonic()
        total = int(trainer.estimated_stepping_batches)
        line = f"{_epoch(trainer)}step {trainer.global_step}/{total}  "
        line += _numbers(trainer)
        if line == self._said:
            return
        self._said, left = line, ""
        if self._start is not None and trainer.global_step > self._start[1]:
            each = (time.monotonic() - self._start[0]) / (trainer.global_step - self._start[1])
            left = f"  {tqdm.format_interval(each * (total - trainer.global_step))} left"
        sys.stdout.write(f"{line}{left}\n")
        sys.stdout.flush()


def _epoch(trainer: L.Trainer) -> str:
    """Epochs begun of all epochs; nothing where steps alone end the run."""
    last = trainer.max_epochs
    if last is None or last < 0:
        return ""
    return f"epoch {min(trainer.current_epoch + 1, last)}/{last}  "


def _numbers(trainer: L.Trainer) -> str:
    metrics = trainer.callback_metrics
    return ", ".join(f"{s} {float(metrics[n]):.3f}" for n, s in _SHOWN.items() if n in metrics)
