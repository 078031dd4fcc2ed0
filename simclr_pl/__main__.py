"""`python -m simclr_pl COMMAND ...`: the table of commands, and what an error looks like."""

import difflib
import errno
import importlib
import io
import locale
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from simclr_pl import __version__
from simclr_pl.cluster.parent import PARENT
from simclr_pl.commandline.output import keep_going
from simclr_pl.core.errors import UserError
from simclr_pl.run.unfinished import UnfinishedError
from simclr_pl.writing import of_full_disk

COMMANDS = {
    "fit": ("fit", "pretrain: fit --config configs/cifar.yaml"),
    "validate": ("fit", "loss and probe accuracy on the validation split of a run"),
    "test": ("fit", "loss and probe accuracy on the test split of a run"),
    "predict": ("fit", "write features, labels and indices of a split to one file"),
    "linear": ("linear", "linear evaluation: a linear classifier on frozen features"),
    "knn": ("knn", "nearest-neighbour evaluation of frozen features"),
    "finetune": ("finetune", "train the network on with a share of the labels, or from scratch"),
    "compare": (
        "compare", "is pretraining worth it? raw pixels, untrained and pretrained encoder, one "
        "protocol",
    ),
    "stats": (
        "stats", "sizes, kinds, numbers, copies and bad ones of a data set's images, for a recipe",
    ),
    "pack": ("pack.pack", "write a folder of images once, to train without decoding"),
    "sweep": (
        "sweep.sweep", "try values of a sweep's YAML, run after run, and compare them in a table",
    ),
    "views": ("views", "a picture of what the augmentation does"),
    "doctor": (
        "fit", "what a config will do on this machine, what looks wrong, and whether `fit` fails",
    ),
    "bench": (
        "fit", "how fast a config trains on this machine, what it waits for, and what to change",
    ),
    "report": (
        "report", "curves and pictures of a run on one page, also while it runs; or runs compared",
    ),
    "dashboard": ("dashboard", "a W&B workspace with panels for all of it"),
}  # fmt: skip
"""Each command's file in the room `commands`, and its line in `--help`."""


HEADINGS = {
    "train": ("fit", "finetune"),
    "score": ("validate", "test", "linear", "knn", "compare"),
    "use": ("predict",),
    "look": ("stats", "views", "report", "dashboard"),
    "run": ("doctor", "pack", "bench", "sweep"),
}
"""Groups of commands in `--help`; each command stands under one heading."""


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: python -m simclr_pl COMMAND [options]", "", "SimCLR in PyTorch Lightning.", ""]
    for heading, names in HEADINGS.items():
        lines += [f"{heading}:", *(f"  {name:<{width}}  {COMMANDS[name][1]}" for name in names), ""]
    lines += [
        "python -m simclr_pl COMMAND --help lists a command's options; --debug shows tracebacks."
    ]
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    """Runs a command and returns the exit code.

    Args:
        args: command line without the program's name (default: this process's).
    """
    keep_going()
    args = sys.argv[1:] if args is None else args
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_help() + "\n")
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"simclr_pl {__version__}\n")
        return 0
    if args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
        sys.stderr.write(f"error: unknown command '{args[0]}': {hint}\n")
        return 2
    code = _run(args, debug=debug)
    # `doctor` answers a question: 1 is "no, `fit` would fail".
    return 1 if args[0] == "doctor" and code == 2 else code


def _speak_utf8() -> None:
    """Texts are UTF-8 whatever the locale; what a terminal cannot show is replaced, no error.

    The locale is that of libraries, which open files without naming an encoding.
    """
    if locale.getencoding().lower() != "utf-8":
        for name in ("C.UTF-8", "en_US.UTF-8", "UTF-8"):
            with suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                break
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(args: list[str], *, debug: bool) -> int:
    """Runs a known command; an error becomes one sentence."""
    _speak_utf8()
    PARENT.watch()  # before imports, which take seconds
    try:
        importlib.import_module(f"simclr_pl.commands.{COMMANDS[args[0]][0]}").run_cli(args)
    except KeyboardInterrupt as error:
        if debug:
            raise
        _say(" ".join(["interrupted", *map(str, error.args)]), 130)
        return 130
    except UnfinishedError as stop:
        return _stop(stop)
    except UserError as error:
        if debug:
            raise
        return _say(_innermost(str(error)), 2)
    except Exception as error:
        if debug:
            raise
        return _surprise(error, args)
    finally:
        PARENT.over.set()
    return 0


def _stop(stop: UnfinishedError) -> int:
    """Says that a run is to be continued, then has it queued, which may end this process."""
    try:
        _say(str(stop), stop.code, "unfinished")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:  # whether anybody listens or not
        failure = stop.then() if stop.then else None
    if failure:
        sys.stderr.write(f"{failure}\n")
    return stop.code


def _surprise(error: Exception, args: list[str]) -> int:
    """Says what no sentence was written for: the system's refusals, Lightning's, and bugs."""
    text = " ".join(str(error).split()) or "no message"
    if full := of_full_disk(error):
        text = str(full)
    elif isinstance(error, OSError) and error.errno in _OF_A_NAME and error.filename:
        text = _about_a_name(error, args)
    elif type(error).__name__ == "MisconfigurationException":  # Lightning's own UserError
        text = f"Lightning refuses this: {text}"
    else:
        return _say(f"{type(error).__name__}: {text} (--debug shows where)", 1)
    return _say(text, 2)


_OF_A_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP}
"""Errors of the system that come of the name which a file or folder was given."""


def _about_a_name(error: OSError, args: list[str]) -> str:
    """The sentence about a file that cannot be used, with the option that named it, if any."""
    name = os.fsdecode(error.filename)
    words = (word for arg in args for word in (arg.split("=", 1) if arg[:2] == "--" else [arg]))
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word
        elif word and (word in name or os.path.basename(name) in word):  # noqa: PTH119
            return f"{option} is {word}: {error.strerror}, give another".strip()
    return f"{name} cannot be used: {error.strerror}"


def _innermost(text: str) -> str:
    """The sentence alone, where a worker process has wrapped it in its traceback."""
    return text.rsplit("UserError: ", 1)[-1].strip()


def _say(sentence: str, code: int, kind: str = "error") -> int:
    """Writes the sentence, once: the first rank speaks, the others say who they are."""
    names = "RANK", "SLURM_PROCID", "LOCAL_RANK"
    rank = next((os.environ[name] for name in names if name in os.environ), "0")
    if rank == "0":
        sys.stderr.write(f"{kind}: {sentence}\n")
    elif kind == "error":
        sys.stderr.write(f"rank {rank}: {sentence}\n")
    return code


def run_process() -> NoReturn:
    """Runs this process's command line, and ends the process: `simclr_pl`, once installed.

    Classes of the user's own are found in the current folder, as by `python -m`.
    """
    here = str(Path.cwd())
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    code = main()
    # A late signal is not to change the exit code.
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run_process()
