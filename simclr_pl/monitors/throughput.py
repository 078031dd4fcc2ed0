"""How fast a run trains, and whether it is the data that it waits for."""

from time import perf_counter
from typing import Any

import lightning as L
import torch

from simclr_pl.monitors.moments import log_now


class Throughput(L.Callback):
    """Logs `speed/images_per_s` and `speed/data_wait`, over the steps since they last were.

    On CUDA `speed/gpu_memory_bytes` as well, the most that tensors have taken up of the first
    rank's device.

    Images are those of the global batch, each counted once though it has two views. `data_wait` is
    the share (0 to 1) of these steps' time in which the first rank's process waited for its loader
    to hand over a batch, in a loader that counts this in `waited`, as `TrainLoader` does; making
    views is no part of it. Left out are a process's first step, what lies between epochs, and steps
    in which there was a validation or a checkpoint.

    Nothing here waits for the device. On a step that is logged `StopOnNaN` has done so, if it comes
    before this among the callbacks; elsewhere a device may lag behind by part of a step.

    Timings are nobody's trajectory: no checkpoint holds them.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._warm = False
        # When the last step ended, and the wait for data until then: if this step follows at once.
        self._mark: tuple[float, float] | None = None
        self._forget()

    def _forget(self) -> None:
        self._images, self._seconds, self._waited = 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for the first step, which takes longer than any other."""
        self._start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes on: the wait for an epoch's first batch counts."""
        if self._warm:
            self._mark = _now(trainer)

    def on_validation_start(self, *_: Any) -> None:
        """Leaves out a validation's time, and a checkpoint's."""
        self._mark = None

    on_save_checkpoint = on_validation_start  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Adds the step, and logs when Lightning does."""
        before, now = self._mark, _now(trainer)
        self._mark, self._warm = now, True
        if before is not None:
            self._images += trainer.datamodule.batch_size  # type: ignore[attr-defined]
            self._seconds += now[0] - before[0]
            self._waited += now[1] - before[1]
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._images and every and trainer.global_step % every == 0:
            self._log(trainer)

    def _log(self, trainer: L.Trainer) -> None:
        """Logs now: Lightning would log a number again on later steps that have no new one."""
        numbers = {"speed/images_per_s": self._images / self._seconds}
        if hasattr(trainer.train_dataloader, "waited"):
            numbers["speed/data_wait"] = self._waited / self._seconds
        device = trainer.strategy.root_device
        if device.type == "cuda":
            numbers["speed/gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        self._forget()
        log_now(trainer, numbers)


def _now(trainer: L.Trainer) -> tuple[float, float]:
    """The time, and how long the loader has been waited for until now, in seconds."""
    return perf_counter(), getattr(trainer.train_dataloader, "waited", 0.0)
