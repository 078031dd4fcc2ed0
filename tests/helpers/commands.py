"""Runs commands as a user does: in this process where that is the same, else in one of its own."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from warm import Warm

from simclr_pl.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]

NARROW = {"channels": [8, 8, 16, 16], "stem_type": "", "stem_width": 8}
"""`encoder_args` of a very small ResNet, "resnet10t"."""

ENCODER_ARGS = json.dumps(NARROW)

DRAWING = ENCODER_ARGS.replace("}", ', "drop_rate": 0.3, "drop_path_rate": 0.3}')
"""With layers that draw random numbers in training."""

QUICK = (
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"),
    *("--trainer.limit_train_batches", "2"),
    *("--trainer.log_every_n_steps", "1", "--data.image_size", "8", "--data.batch_size", "128"),
    *("--model.encoder", "resnet10t", "--model.encoder_args", ENCODER_ARGS),
    *("--model.optimizer", "sgd", "--model.learning_rate", "0.05", "--model.warmup_epochs", "0"),
    *("--wandb", "off"),
)
"""Four steps on digits with a very small ResNet: half a second."""


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
"""Of a `Trainer` that writes nothing."""


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of an error; whatever else it is fails the test."""
        lines = self.err.splitlines()
        assert self.code != 0, self
        assert len(lines) == 1, self
        assert lines[0].startswith("error: "), self
        assert "Traceback" not in self.out + self.err
        return lines[0]


def run(*args: object) -> Outcome:
    """Runs `python -m simclr_pl ARGS`, here: same code, without 8 seconds of imports."""
    out, err = io.StringIO(), io.StringIO()
    argv, environment = sys.argv, dict(os.environ)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([str(arg) for arg in args])
            except SystemExit as end:  # as the interpreter would take it
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    return Outcome(code, out.getvalue(), err.getvalue())


def fit(directory: Path, *args: object) -> Outcome:
    """Trains for four steps into `directory`; it has to work."""
    outcome = run("fit", *QUICK, "--run_dir", directory, *args)
    assert outcome.code == 0, outcome
    return outcome


def environment(**more: str) -> dict[str, str]:
    """This process's, with the package on the path, and one thread so that sums are the same."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    mine = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # a server of this process
    return {**mine, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def called(
    *command: object, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """How any program ended, within two minutes unless told otherwise, and what it said."""
    usual: dict[str, Any] = {"env": environment(), "stdin": subprocess.DEVNULL, "timeout": 120}
    usual |= {"capture_output": True, "text": True}
    return subprocess.run([str(word) for word in command], check=check, **(usual | options))


def start(*args: object, fresh: bool = False, **options: Any) -> subprocess.Popen[str]:
    """Starts `python -m simclr_pl ARGS` as a process of its own, without a terminal.

    One that isn't `fresh` comes without the interpreter's start and its imports: see `warm`.
    """
    defaults: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": environment(),
    }
    command = [sys.executable, "-m", "simclr_pl", *map(str, args)]
    return (subprocess.Popen if fresh else Warm)(command, **{**defaults, **options})


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Outcome:
    """Waits for a process; one that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err)


def signal_when(
    process: subprocess.Popen[str], ready: Callable[[], bool], number: signal.Signals
) -> None:
    """Sends a signal as soon as `ready`; the process has to be alive then.

    One that leads a session of its own gets it with all its children, as by Ctrl-C.
    """
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end, "it never got there"
        time.sleep(0.01)
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def refused(tmp_path: Path, *args: object) -> str:
    """The sentence with which `fit` refuses; no trace of the run may be left."""
    outcome = run("fit", *QUICK, "--run_dir", tmp_path / "new" / "run", *args)
    assert not (tmp_path / "new").exists(), sorted((tmp_path / "new").rglob("*"))
    return outcome.sentence
