"""Other systems than the one of the tests: a plain locale, Windows' modules, workers that spawn."""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, REPOSITORY, called, environment, finish, start
from photographs import fill
from run_files import files

from simclr_pl.cluster.signals import StopRequest, handled

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""The locale of a batch job's shell: ASCII alone."""


def python(script: Path, code: str, *args: object, **variables: str) -> tuple[int, str, str]:
    """Runs a script; gives its exit code and what it wrote."""
    script.write_text(code, encoding="utf-8")
    where = {"env": environment(**variables), "cwd": REPOSITORY, "timeout": 240}
    done = called(sys.executable, script, *args, **where)
    return done.returncode, done.stdout, done.stderr


# Locale -------------------------------------------------------------------------------------------


def test_a_recipe_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    config = REPOSITORY / "configs" / "digits.yaml"
    assert not config.read_text(encoding="utf-8").isascii()
    command = ("fit", "--config", config, *QUICK, "--trainer.max_epochs", 1)
    command = (*command, "--wandb.notes", "\u00e9 \u00b1", "--run_dir", tmp_path / "run")
    done = finish(start(*command, fresh=True, env=environment(**PLAIN)))
    assert (done.code, done.err) == (0, "")
    assert "checkpoints/last.ckpt" in files(tmp_path / "run")


SPEAKING = """
import sys, types
from simclr_pl import __main__ as program
sys.modules["simclr_pl.commands.speaking"] = module = types.ModuleType("speaking")
module.run_cli = lambda args: sys.stdout.write("0.9 \\u00b1 0.1 \\u65e5\\n")
program.COMMANDS["speak"] = ("speaking", "")
sys.exit(program.main(["speak"]))
"""


def test_what_a_terminal_cannot_show_is_replaced(tmp_path: Path) -> None:
    assert python(tmp_path / "script.py", SPEAKING, **PLAIN) == (0, "0.9 \\xb1 0.1 \\u65e5\n", "")
    latin = {"PYTHONIOENCODING": "ascii:strict"}
    assert python(tmp_path / "script.py", SPEAKING, **latin)[1] == "0.9 \\xb1 0.1 \\u65e5\n"


# Windows ------------------------------------------------------------------------------------------

WINDOWS = """
import builtins, os, pkgutil, signal, sys, types

LACKS = {
    "os": "O_DIRECTORY fork getuid geteuid getgid getpgid killpg setsid sched_getaffinity "
    "statvfs uname".split(),
    "signal": "SIGUSR1 SIGUSR2 SIGHUP SIGKILL SIGALRM pthread_sigmask alarm".split(),
}
ABSENT = {"fcntl", "resource", "pwd", "grp", "termios"}
real_import, real_open = builtins.__import__, os.open
lacking = {}

def open_no_folder(path, *args, **kwargs):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return real_open(path, *args, **kwargs)

for name, absent in LACKS.items():
    module = types.ModuleType(name)
    known = vars(real_import(name))
    vars(module).update({k: v for k, v in known.items() if k not in absent})
    lacking[name] = module
lacking["os"].open, lacking["os"].name = open_no_folder, "nt"

def import_as_there(name, globals=None, locals=None, fromlist=(), level=0):
    if (globals or {}).get("__name__", "").startswith("simclr_pl"):
        if name in ABSENT:
            raise ImportError(f"No module named {name!r}")
        if name in lacking:
            return lacking[name]
    return real_import(name, globals, locals, fromlist, level)

builtins.__import__ = import_as_there
import simclr_pl
for module in pkgutil.walk_packages(simclr_pl.__path__, "simclr_pl."):
    __import__(module.name)
from simclr_pl.__main__ import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_everything_imports_and_trains_without_what_windows_lacks(tmp_path: Path) -> None:
    command = ("fit", *QUICK, "--trainer.max_epochs", 1, "--run_dir", tmp_path / "run")
    code, _, err = python(tmp_path / "windows.py", WINDOWS, *command)
    assert (code, err) == (0, "")
    assert "checkpoints/last.ckpt" in files(tmp_path / "run")


@pytest.mark.parametrize(
    "taken",
    [StopRequest().listening, partial(handled, [signal.SIGTERM], signal.default_int_handler)],
)
def test_a_signal_that_a_c_library_has_taken_is_given_back(
    taken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has no name for what was there: `None`, which it does not take back."""
    real = signal.signal
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *args: [real(*args), None][1])
    try:
        with taken():
            pass
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            real(number, handler)


# Workers ------------------------------------------------------------------------------------------

STARTING = """
import multiprocessing, sys
from simclr_pl.__main__ import main
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_folder_is_read_by_workers_of_every_kind(method: str, tmp_path: Path) -> None:
    """Those of macOS, and those of Linux from Python 3.14 on."""
    for name in ("cat", "dog"):
        fill(tmp_path / "images" / name, 12)
    command = ("fit", *QUICK, "--data.dataset", "folder", "--data.root", tmp_path / "images")
    command = (*command, "--data.batch_size", 8, "--data.num_workers", 1)
    command = (*command, "--trainer.max_epochs", 1, "--run_dir", tmp_path / "run")
    code, _, err = python(tmp_path / "starting.py", STARTING, method, *command)
    assert (code, err) == (0, "")
    assert "checkpoints/last.ckpt" in files(tmp_path / "run")
