"""Runs that are broken off at a chosen moment, and what they are then compared with."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pausing
import torch
from commands import REPOSITORY, environment, finish, signal_when, start
from run_files import cells, checkpoint, rows


def begin(directory: Path, *args: Any, moment: str = "") -> subprocess.Popen[str]:
    """Starts a run, with the callback `pausing.Pause`, that waits at a moment."""
    flag = directory.with_suffix(".flag")
    flag.unlink(missing_ok=True)
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])
    about = {pausing.MOMENT: moment, pausing.FLAG: str(flag), "PYTHONPATH": paths}
    command = ("fit", *args, "--trainer.callbacks+=pausing.Pause", "--run_dir", directory)
    return start(*command, env=environment(**about))


def paused(directory: Path) -> Callable[[], bool]:
    """Whether the moment has come."""
    return directory.with_suffix(".flag").exists


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Kills a process as soon as `ready`, and sees to it that this is what it died of."""
    signal_when(process, ready, signal.SIGKILL)
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (-signal.SIGKILL, ""), outcome


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, where -0 is not 0."""
    return tensor.contiguous().flatten().view(torch.uint8)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, by a bit or a type."""
    if type(one) is not type(other):
        return [f"{where}: {type(one)}, {type(other)}"]
    if isinstance(one, torch.Tensor):
        same = (one.dtype, one.shape) == (other.dtype, other.shape)
        same = same and torch.equal(bits(one), bits(other))
        return [] if same else [f"{where}: {one}, {other}"]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{where}: {list(one)}, {list(other)}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    return [] if one == other else [f"{where}: {one}, {other}"]


def check_same_run(killed: Path, whole: Path) -> None:
    """Everything in every checkpoint, and every number logged, to the bit."""
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == names
    seen = Path("checkpoints") / "data.npz"
    assert (killed / seen).read_bytes() == (whole / seen).read_bytes()
    for name in set(names) - {seen.name}:
        assert differences(checkpoint(killed, name), checkpoint(whole, name)) == []
    assert [row["step"] for row in rows(killed)] == [row["step"] for row in rows(whole)]
    assert cells(killed) == cells(whole)
