"""Callbacks for tests of whole runs: what was trained on, to the bit, and runs that end badly."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning as L

from simclr_pl.core.batch import Batch, Views


class Recorder(L.Callback):
    """Writes below the run's directory which images go through the network, and as which views.

    A line for each pass through the encoder: the step, then index and digest of each image.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listens to where all views come from: with micro-batches, the model asks for them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        make = data.make_views
        path = Path(trainer.default_root_dir) / "record"
        path.mkdir(exist_ok=True)
        path = path / f"{trainer.world_size}-{trainer.global_rank}"

        def recorded(batch: Batch) -> Views:
            views: Views = make(batch)
            if trainer.training:
                with path.open("a") as file:
                    file.write(f"{trainer.global_step} {' '.join(_digests(views))}\n")
            return views

        data.make_views = recorded


def _digests(views: Views) -> list[str]:
    """`index:digest` of each image, over the bytes of both its views."""
    first, second = views.views.chunk(2)
    index = views.index[: len(first)].tolist()
    pairs = zip(index, first.numpy(), second.numpy(), strict=True)
    return [
        f"{index}:{hashlib.blake2b(a.tobytes() + b.tobytes(), digest_size=8).hexdigest()}"
        for index, a, b in pairs
    ]


Pass = tuple[int, tuple[str, ...]]
"""A step, and `index:digest` of the images that went through the encoder together in it."""


def passes(directory: Path) -> list[Pass]:
    """What a `Recorder` has written, ranks put together; what was done twice alike counts once.

    Twice: a micro-batch's second pass for its gradient, and steps behind a resumed checkpoint.
    """
    worlds = {path.name.split("-")[0] for path in (directory / "record").iterdir()}
    found: list[Pass] = []
    for world in worlds:
        # In the order of ranks, whose lines are of the same passes.
        paths = [directory / "record" / f"{world}-{rank}" for rank in range(int(world))]
        ranks = [[line.split() for line in path.read_text().splitlines()] for path in paths]
        for lines in zip(*ranks, strict=True):
            assert len({step for step, *_ in lines}) == 1, lines
            images = tuple(image for _, *slice_ in lines for image in slice_)
            found.append((int(lines[0][0]), images))
    return sorted(dict.fromkeys(found), key=lambda one: one[0])


class Blackout(L.Callback):
    """Kills all processes of a run at the beginning of a step: nobody gets to tidy up.

    The run has to be the leader of its process group.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.strategy.barrier()  # so that it is known what the others have done
            if trainer.is_global_zero:
                os.killpg(0, signal.SIGKILL)


def wandb_process(parent: int) -> int:
    """The number of W&B's own process, which a run has started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        if name.startswith("wandb-core") and int(rest.split()[1]) == parent:
            return int(path.parent.name)
    raise AssertionError("there is none")


class WandbLost(L.Callback):
    """Kills W&B's own process at the beginning of a step, as the system does without memory."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(wandb_process(os.getpid()), signal.SIGKILL)


class InterruptionError(Exception):
    """Nobody expects it."""


class Interruption(L.Callback):
    """Ends a run of the tests' own process at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptionError


class Stopped(L.Callback):
    """Sends SIGTERM to the tests' own process in a step; 0 is before the first."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_fit_start(self, *args: Any) -> None:
        if not self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Seen(L.Callback):
    """Writes below the run's directory what Slurm has told each task, and has given the step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
        ask = ["scontrol", "--oneliner", "show", "step", step]
        known = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        path = Path(trainer.default_root_dir) / f"seen-{trainer.global_rank}"
        path.write_text(json.dumps({**os.environ, "step": known}))


class Ends(L.Callback):
    """Asks Lightning to end the fit behind a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


class SaveEveryStep(L.Callback):
    """Checkpoints as a run writes them: behind each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")
