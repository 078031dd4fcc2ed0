"""`python -m simclr_pl COMMAND ...`: the table of commands, and what an error looks like."""

import difflib
import importlib
import io
import locale
import os
import signal
import sys
from contextlib import suppress

from simclr_pl import __version__
from simclr_pl.errors import UnfinishedError, UserError
from simclr_pl.files import of_full_disk
from simclr_pl.output import keep_going
from simclr_pl.run.parent import PARENT

COMMANDS = {
    "fit": ("simclr_pl.cli", "pretrain: fit --config configs/cifar.yaml"),
    "validate": ("simclr_pl.cli", "loss and probe accuracy on the validation split of a run"),
    "test": ("simclr_pl.cli", "loss and probe accuracy on the test split of a run"),
    "predict": ("simclr_pl.cli", "write features, labels and indices of a split to one file"),
    "linear": (
        "simclr_pl.tools.linear",
        "linear evaluation: a linear classifier on frozen features",
    ),
    "knn": ("simclr_pl.tools.knn", "nearest-neighbour evaluation of frozen features"),
    "finetune": (
        "simclr_pl.tools.finetune",
        "train the network on with a share of the labels, or from scratch",
    ),
    "compare": (
        "simclr_pl.tools.compare",
        "is pretraining worth it? raw pixels, untrained and pretrained encoder, one protocol",
    ),
    "pack": ("simclr_pl.tools.pack", "write a folder of images once, to train without decoding"),
    "sweep": (
        "simclr_pl.tools.sweep",
        "try values of a sweep's YAML, run after run, and compare them in a table",
    ),
    "views": ("simclr_pl.tools.views", "a picture of what the augmentation does"),
    "bench": (
        "simclr_pl.cli",
        "how fast a config trains on this machine, what it waits for, and what to change",
    ),
    "report": (
        "simclr_pl.tools.report",
        "curves and pictures of a run on one page, also while it runs; or runs compared",
    ),
    "dashboard": ("simclr_pl.tools.dashboard", "a W&B workspace with panels for all of it"),
}


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: python -m simclr_pl COMMAND [options]\n\nSimCLR in PyTorch Lightning.\n\n"
        f"commands:\n{lines}\n\n"
        "python -m simclr_pl COMMAND --help lists a command's options; --debug shows tracebacks."
    )


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
    return _run(args, debug=debug)


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
        importlib.import_module(COMMANDS[args[0]][0]).run_cli(args)
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
        if full := of_full_disk(error):
            return _say(str(full), 2)
        text = " ".join(str(error).split()) or "no message"
        return _say(f"{type(error).__name__}: {text} (--debug shows where)", 1)
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


if __name__ == "__main__":
    code = main()
    # A late signal is not to change the exit code.
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)
