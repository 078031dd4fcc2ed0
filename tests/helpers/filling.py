"""The room or the directory taken away: from this process, from a run in its third step."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L

STEP = 3


class Full(L.Callback):
    """From now on no file of this process grows beyond `size` bytes, as on a full disk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == STEP - 1:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, most))


class Gone(L.Callback):
    """Somebody removes the run's directory."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == STEP - 1:
            shutil.rmtree(Path(trainer.default_root_dir))


@contextmanager
def room_given_back() -> Iterator[None]:
    """A context behind which files may grow as before it: pytest's own output may be one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A context in which no file may grow beyond so many bytes, as if a disk was full."""
    with room_given_back():
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        yield
