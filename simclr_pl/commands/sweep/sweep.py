"""`sweep`: the runs of a sweep's YAML one after the other, on this machine, and a table of them."""

import difflib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from simclr_pl.commandline.call import call
from simclr_pl.commands.sweep.space import Search, read_search
from simclr_pl.commands.sweep.table import Trial, write_tables
from simclr_pl.core.errors import UserError
from simclr_pl.core.paths import expanded
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.metrics import read_metrics
from simclr_pl.writing import make_folder, write_text

DONE = "done"

RUN_EXIT_TIMEOUT_S = 10.0
"""Seconds that an interrupted run has to end by itself."""

LOCK_RELEASE_TIMEOUT_S = 3.0
"""Seconds that a killed run has to be gone."""


def sweep(
    *,
    local: int,
    config: str = "configs/sweep.yaml",
    out: str | None = None,
    resume: bool = False,
    seed: int = 0,
) -> Path:
    """Tries values of a sweep's YAML (W&B's format) one run after the other, without a server.

    Grid search, or random search in which a run's values depend on seed and number alone. They
    reach `fit` as options, behind those of the YAML's command. Each run has a run directory in the
    sweep's folder (000, 001, ...) and a log beside it; runs.md and runs.csv compare them by the
    last value of the YAML's metric, never the best. A run that fails is shown as failed, and the
    sweep goes on. With W&B's server, and on Slurm: scripts/sweep.sh.

    Args:
        local: number of runs at most; a grid may have fewer.
        config: the sweep's YAML.
        out: folder of the sweep (default: runs/<name of the YAML>).
        resume: go on with the sweep in the folder, or start it where there is none yet; runs that
            failed are tried once more.
        seed: of random search.

    Returns:
        The table's path.

    Raises:
        UserError: a YAML that can't be followed, a folder that holds another sweep or is at work,
            a metric that isn't logged, or not one run that finished.
    """
    if local < 1:
        raise UserError(f"local is {local}, but must be at least 1 run")
    search = read_search(expanded(config))
    search.words({})  # whether its macros are known
    folder = expanded(out) if out else Path("runs") / search.path.stem
    with _alone(folder) as lock:
        state = _claim(folder, search, seed, resume=resume)
        values = search.trials(max(local, len(state["ended"])), seed)  # none is left out again
        trials: list[Trial] = []
        for number, of_run in enumerate(values):
            run = RunDirectory(folder / f"{number:03d}")
            if state["ended"].get(run.path.name) != DONE:
                shown = ", ".join(f"{name} {of_run[name]}" for name in search.searched)
                sys.stdout.write(f"run {number + 1} of {len(values)} ({run.path}): {shown}\n")
                state["ended"][run.path.name] = _train(run, search.words(of_run), lock, config)
                _save(folder, state)
            trials.append(_trial(run, of_run, search, state["ended"][run.path.name]))
            _check_metric(trials, search, run)
            table = write_tables(folder, search, trials, len(values))
    sys.stdout.write(table)
    if all(trial.failure for trial in trials):
        raise UserError(f"none of {len(trials)} runs finished; the first: {trials[0].failure}")
    return folder / "runs.md"


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Keeps a second sweep out of the folder, for as long as this one or a run of it lives."""
    make_folder(folder, "--out")
    with (folder / "lock").open("w", encoding="utf-8") as file:
        end = time.monotonic() + LOCK_RELEASE_TIMEOUT_S
        while not _lock(file):
            if time.monotonic() > end:
                raise UserError(
                    f"{folder} is at work, in a sweep or in the run that a killed one has left "
                    "behind: wait until that has ended, or give another --out"
                )
            time.sleep(0.1)
        yield file.fileno()


def _lock(file: IO[str]) -> bool:
    """Takes the file's lock, unless another process has it."""
    try:
        import fcntl
    except ImportError:
        return True  # on Windows the lock of each run directory has to do
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _claim(folder: Path, search: Search, seed: int, *, resume: bool) -> dict[str, Any]:
    """The state of the folder's sweep: its content, seed, and the runs that have ended."""
    path = folder / "sweep.json"
    state = {"seed": seed, "sweep": search.content, "ended": {}}
    if path.exists():
        if not resume:
            raise UserError(
                f"{folder} already holds a sweep: add --resume to go on with it, or give another "
                "--out"
            )
        before = _read(path)
        now = json.loads(json.dumps(state))  # as it reads back
        keys = ("method", "command", "parameters")
        changed = [key for key in keys if before["sweep"].get(key) != now["sweep"].get(key)]
        changed += ["seed"] if search.method == "random" and before["seed"] != seed else []
        if changed:
            raise UserError(
                f"{changed[0]} was another one in {folder}: its runs would not compare; give it as "
                "it was, or another --out"
            )
        state["ended"] = before["ended"]
    _save(folder, state)
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if before.keys() >= {"seed", "sweep", "ended"}:
            return before
    except (ValueError, AttributeError):
        pass
    raise UserError(
        f"{path} is broken, and what the sweep has done is not known: remove it, and --resume goes "
        "through all runs once more, of which those that have ended take seconds"
    )


def _save(folder: Path, state: dict[str, Any]) -> None:
    """In one rename: a kill leaves the old file or the new one."""
    write_text(folder / "sweep.json", json.dumps(state, indent=2) + "\n")


def _train(run: RunDirectory, command: list[str], lock: int, config: str) -> str:
    """Trains in a process of its own, which may run out of memory; returns how it ended."""
    words = [*command, "--run_dir", str(run.path), "--resume"]
    error = ""
    log = run.path.with_suffix(".log")
    with log.open("a", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                pass_fds=[lock] if os.name == "posix" else [],
            )
        except OSError as failed:
            raise UserError(f"{config}: {words[0]} cannot be run ({failed.strerror})") from failed
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    for reader in (file, sys.stdout):
                        reader.write(line)
                        reader.flush()
                    if line.startswith("error: "):
                        error = line.removeprefix("error: ").strip()
            except KeyboardInterrupt:
                _end(process)
                raise KeyboardInterrupt(
                    f"in {run.path}: the same command with --resume continues"
                ) from None
    if process.returncode == 0:
        return DONE
    return error or f"ended with exit code {process.returncode}, see {log}"


def _end(process: "subprocess.Popen[str]") -> None:
    """Waits for a run that was interrupted with this process, and ends one that was not."""
    try:
        process.communicate(timeout=RUN_EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.terminate()


def _trial(run: RunDirectory, values: dict[str, Any], search: Search, ended: str) -> Trial:
    """A run that has ended, with the last value of the metric."""
    rows = read_metrics(run.metrics) if run.metrics.is_file() else []
    logged = [row for row in rows if search.metric in row]
    value = float(logged[-1][search.metric]) if logged else None
    epoch = int(logged[-1].get("epoch", -1)) + 1 if logged else None
    failure = "" if ended == DONE else ended
    if not failure and value is None:
        failure = f"logged no {search.metric}"
    return Trial(run.path.name, values, value, epoch, failure)


def _check_metric(trials: list[Trial], search: Search, run: RunDirectory) -> None:
    """Ends a sweep whose first finished run shows that its metric is logged by none.

    Raises:
        UserError: with the nearest name that is logged.
    """
    silent = f"logged no {search.metric}"
    if trials[-1].failure != silent or any(not t.failure for t in trials):
        return
    names = sorted({name for row in read_metrics(run.metrics) for name in row} - {"step", "epoch"})
    near = difflib.get_close_matches(search.metric, names) or names
    raise UserError(
        f"{run.path} has {silent}, the metric of {search.path}: did you mean {' or '.join(near)}?"
    )


def run_cli(args: list[str]) -> None:
    """The command."""
    call(sweep, args)
