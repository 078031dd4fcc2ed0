"""What has ended a run before the end of its schedule, in words."""

from datetime import timedelta

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer


def ended_by(trainer: L.Trainer) -> str | None:
    """What has ended the fit; `None` where that is the end of its epochs or steps."""
    if not trainer.should_stop or trainer.current_epoch == trainer.max_epochs:
        return None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (callback.time_remaining() or 1) <= 0:
            return f"max_time ({timedelta(seconds=_seconds(callback))})"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return f"EarlyStopping ({callback.stopping_reason_message.rstrip('.')})"
    return "trainer.should_stop, which a callback or the model has set"


def _seconds(timer: Timer) -> int:
    """Those of `max_time`: they aren't public, but their two parts are."""
    return int(round(timer.time_elapsed() + (timer.time_remaining() or 0), 3))
