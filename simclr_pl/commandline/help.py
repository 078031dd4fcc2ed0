"""`--help` of commands with a hundred options and more: a line or two each, grouped, no types."""

import argparse
import textwrap
from collections.abc import Iterator
from typing import Any

from simclr_pl.core.errors import UserError

WIDTH = 100
"""Characters of a line."""

HELP_AT = 28
"""Column at which an option's help begins."""


_IN_SHORT = {
    "config": "a recipe in YAML; later ones win",
    "print_config": "print the whole recipe, all options applied",
    "seed_everything": "of everything that is random (true: another one each time)",
    "ckpt_path": "checkpoint of a run (default: the last one of --run_dir)",
}
"""Help of an option that replaces Lightning's and jsonargparse's own."""


def wanted_group(args: list[str]) -> tuple[list[str], str | None]:
    """`fit --help trainer` asks for the options of one group.

    Args:
        args: command and options, as on the command line.

    Returns:
        The command line without the group's name, and that name.
    """
    for place, arg in enumerate(args[:-1]):
        name = args[place + 1]
        if arg in ("-h", "--help") and not name.startswith("-"):
            return [*args[: place + 1], *args[place + 2 :]], name
    return args, None


def help_of(parser: Any, only: str | None) -> str:
    """The text of `--help`.

    Args:
        parser: jsonargparse's, of a command.
        only: the group whose options are shown (default: all but Lightning's own, `trainer`).
    """
    command = parser.prog.split("[options] ")[-1].split()[-1]
    defaults = parser.get_defaults()
    lines = [f"usage: python -m simclr_pl {command} [options]", ""]
    if only is None:
        lines += [*textwrap.wrap(parser.description or "", WIDTH), ""]
    names = set()
    for group in parser._action_groups:
        options = (action.option_strings[-1][2:] for action in group._group_actions)
        names |= {option.partition(".")[0] for option in options if "." in option}
        actions = [action for action in group._group_actions if _is_shown(action, only)]
        if actions:
            # (Lightning's title of the one option that it adds breaks off in mid-sentence.)
            title = "checkpoint" if actions[0].dest == "ckpt_path" else group.title or "options"
            lines += textwrap.wrap(f"{title}:", WIDTH)
            lines += [line for action in actions for line in _lines(action, defaults)]
            lines.append("")
    if only is not None and only not in names:
        there = ", ".join(sorted(names))
        raise UserError(f"--help {only} asks for no group of options: there are {there}")
    if only is None:
        lines.append(
            f"{command} --help trainer lists Lightning's own options (--trainer.devices, ...)"
        )
    return "\n".join(lines).rstrip() + "\n"


def _is_shown(action: argparse.Action, only: str | None) -> bool:
    names = [name.lstrip("-") for name in action.option_strings] or [action.dest]
    name = names[-1]
    groups = {name.partition(".")[0] for name in names}
    if action.help == argparse.SUPPRESS or name.endswith(".help"):
        return False
    if only is not None:
        return "." in name and only in groups
    # (`--model FILE` gives a whole group: the file is for --config.)
    return groups != {"trainer"} and not (action.help or "").startswith(
        "Path to a configuration file."
    )


def _lines(action: argparse.Action, defaults: Any) -> Iterator[str]:
    names = [name for name in action.option_strings if not name.endswith("+")]
    text = " ".join(_IN_SHORT.get(action.dest, action.help or "").split()).replace("%%", "%")
    default = defaults.get(action.dest, None) if action.dest in defaults else None
    plain = isinstance(default, str | int | float | tuple | list)
    if "(default" not in text and "Default: " not in text and plain and action.nargs != 0:
        value = list(default) if isinstance(default, tuple) else default
        text = f"{text.rstrip('.')} (default: {value})"
    shown = f"  {', '.join(names) or action.dest}{_takes(action)}"
    wrapped = textwrap.wrap(text, WIDTH - HELP_AT, break_on_hyphens=False) or [""]
    if len(shown) >= HELP_AT - 1:
        # A long name gives its line's rest to the help, if all of that fits.
        if len(shown) + 2 + len(text) <= WIDTH:
            yield f"{shown}  {text}"
            return
        yield shown
    else:
        yield f"{shown:<{HELP_AT}}{wrapped.pop(0)}".rstrip()
    for line in wrapped:
        yield " " * HELP_AT + line


def _takes(action: argparse.Action) -> str:
    """The words that an option takes; of others its name says enough."""
    words = str(action.metavar or "")
    return f" {words}" if words.startswith("{") and len(words) < HELP_AT else ""
