"""Parsers whose errors are one sentence, and functions as commands."""

import difflib
import itertools
import re
import sys
import typing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import ArgumentParser, set_loader

from simclr_pl.commandline.shorthand import (
    add_argument,
    as_options,
    loads_wandb_mode,
    with_door_arguments,
)
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.paths import expanded
from simclr_pl.images.heldout import HeldOut
from simclr_pl.run.yaml_file import load_yaml, no_mapping, read_config, read_text


class OneSentence:
    """For parsers: short forms are understood, and errors are `UserError`s, not a page of usage.

    YAML is read as `read_config` reads it.
    """

    hints: ClassVar[dict[str, str]] = {}
    """Types, in words, of options that take a list, or of which the name alone means true."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        set_loader("recipe", loads_wandb_mode(load_yaml), (yaml.YAMLError,))
        super().__init__(*args, **{**kwargs, "parser_mode": "recipe"})

    def parse_args(self: Any, args: Any = None, *more: Any, **options: Any) -> Any:
        """Parses, with short forms spelt out; looks at files before they are opened.

        `--model.optimizer torch.optim.Adam --model.optimizer.lr 0.001` is that class with an `lr`
        among its `init_args`; a class that a file names may be given one more in the same way.
        """
        given = sys.argv[1:] if args is None else list(args)
        rest, found = with_door_arguments(as_options(self.hints, given))
        _check_files(self, rest)
        config = super().parse_args(rest, *more, **options)  # type: ignore[misc]
        for door, name, value in found:
            command = config.get("subcommand")
            own = config[command] if command else config
            if door not in own:
                command = command or self.prog.split()[-1]
                raise UserError(f"{command} has no option --{door}.{name}: see {command} --help")
            own[door] = add_argument(own[door], name, value)
        return config

    def instantiate_classes(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes the objects of a configuration; one that its class refuses is a `UserError`."""
        try:
            return super().instantiate_classes(*args, **kwargs)  # type: ignore[misc]
        except UserError:
            raise
        except ValueError as error:
            text = " ".join(str(error).split())
            refused = re.search(
                r"Errors: - (.*?) - (Not a valid|Expected a).*class_path='(.*?)'", text
            )
            if refused is None:
                raise
            name = refused[3].rpartition(".")[2]
            raise UserError(f"{name} refuses its options: {refused[1]}") from error

    def error(self: Any, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `UserError`, with the nearest key where one is misspelt."""
        flat = (vars(parser.get_defaults().as_flat()) for parser in _with_commands(self))
        known = [str(key) for keys in flat for key in keys]
        sentence = _plain(message, known)
        for action in self._actions:
            if not action.option_strings:  # a word without a name
                sentence = sentence.replace(f"--{action.dest} is", f"{action.dest} (see --help) is")
        raise UserError(sentence) from ex


class _Parser(OneSentence, ArgumentParser):
    pass


def _with_commands(parser: Any) -> list[Any]:
    """A parser, and the parsers of its commands."""
    commands = [a.choices.values() for a in parser._actions if isinstance(a.choices, dict)]
    return [parser, *itertools.chain(*commands)]


def _check_files(parser: ArgumentParser, args: list[str]) -> None:
    """Looks at files that options take values from, as `--config` and `--model` do.

    Raises:
        UserError: a folder, a device, or whatever else isn't a text file.
    """
    actions = (action for each in _with_commands(parser) for action in each._actions)
    names = [name for action in actions for name in action.option_strings]
    groups = {name.partition(".")[0] for name in names if "." in name}
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        option, equals, value = arg.partition("=")
        if option in groups | {"--config", "-c"}:
            with suppress(OSError):  # values in full may be too long for a file's name
                path = expanded(value if equals else following)
                if path.exists() and str(path) != ".":
                    read_text(path)


def call(
    function: Callable[..., Any],
    args: list[str],
    several: str | None = None,
    *,
    positional: bool = False,
) -> Any:
    """Runs a function as a command: its parameters are options, its docstring their help.

    Args:
        function: with type hints and Google docstring.
        args: the command's name and its options.
        several: a parameter that takes words without a name, any number of them.
        positional: parameters without a default are words without a name.
    """
    parser = _Parser(prog=f"python -m simclr_pl {args[0]}", allow_abbrev=False)
    parser.description = (function.__doc__ or "").split("\n\nArgs:")[0].split("\n    Args:")[0]
    skip: set[str | int] = set() if several is None else {several}
    parser.add_function_arguments(function, as_positional=positional, skip=skip)
    if several is not None:
        parser.add_argument(several, nargs="*", type=str, default=[], metavar=several[:-1].upper())
    hints = typing.get_type_hints(function)
    parser.hints = {f"--{name}": str(hint) for name, hint in hints.items()}  # type: ignore[misc]
    return function(**parser.instantiate_classes(parser.parse_args(args[1:])).as_dict())


def data_of(
    configs: list[Path], overrides: dict[str, Any] | None = None, kept: HeldOut | None = None
) -> ContrastiveDataModule:
    """The data module of configuration files, prepared and set up.

    Args:
        configs: later ones win.
        overrides: arguments of the data module, which win over all of them.
        kept: the validation images of the run that the data are for.
    """
    merged = data_arguments(configs)
    if merged.pop("label_fraction", None) is not None:  # a fine-tuning, which leaves colours alone
        merged |= {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    # Tools look at a few views, or at none: they don't wait for a compiler.
    merged |= {"compiled": False} | (overrides or {})
    try:
        data = ContrastiveDataModule(**merged)
    except TypeError as error:
        where = configs[-1] if configs else "the command line"
        raise UserError(f"data in {where}: {str(error).split('() ')[-1]}") from error
    data.kept = kept
    data.prepare_data()
    data.setup()
    return data


def data_arguments(configs: list[Path]) -> dict[str, Any]:
    """The data arguments and the seed that configuration files give; later files win."""
    merged: dict[str, Any] = {}
    for path in configs:
        content = read_config(path)
        merged |= {"seed": content["seed_everything"]} if "seed_everything" in content else {}
        merged |= {k: v for k, v in (content.get("data") or {}).items() if v is not None}
    for name in ("scale", "mean", "std", "range"):
        if isinstance(merged.get(name), list):
            merged[name] = tuple(merged[name])
    return merged


def _plain(message: str, known: list[str]) -> str:
    """The parser's message in one line."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", message).split())
    text = re.sub(r"^Parser key \"?([\w.]+)\"?: *", r"\1: ", text)
    text = re.sub(r"Expected an? <class '(\w+)'>\. Got value: ", r"expected \1, got ", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*?)\]\. Got value: ", r"expected \1, got ", text)
    text = re.sub(
        r"the following arguments are required: ([\w.]+\.)?(\w+).*", r"--\2 is required", text
    )
    union = re.search(
        r"Does not validate .*? Subtypes: \[(.*)\] Errors: .* Given value: (.*)", text
    )
    if union:
        kinds = re.sub(r"<class '(\w+)'>|typing\.Literal\[(.*?)\]", r"\1\2", union[1])
        kinds = kinds.replace("NoneType", "null")
        text = f"{text[: union.start()]}expected one of {kinds}, got {union[2]}"
    text = re.sub(r"- Expected a path but .*? either not accessible or invalid - ", "", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"\b(?:\w+\.)+(\w+)(?=[\],])", r"\1", text) if "expected one of" in text else text
    if group := re.match(r"([\w.]+): Unable to load config '(.*?)' - Parser key", text):
        return no_mapping(group[1], group[2])
    if words := re.match(r"unrecognized arguments: ([\w.]+)=(.*)", text):
        return f"options begin with dashes: write --{words[1]} {words[2]}"
    if behind := re.search(r"([\w.]+): .*NestedArg\(key='(\w+)'", text):
        return (
            f"{behind[1]}.{behind[2]} is an option of an object that isn't there yet: give its "
            f"class before, as in --{behind[1]}+=CLASS --{behind[1]}.{behind[2]} VALUE"
        )
    unknown = "nrecogni", "not expected", "does not exist", "not accept option"
    misspelt = re.search(
        r"(?:[Uu]nrecogni[sz]ed arguments: --|[Kk]ey '?|key \"|option ')([\w.]+)", text
    )
    if misspelt and any(w in text for w in unknown):
        guess = _nearest(misspelt[1], known)
        text = f"unknown key '{misspelt[1]}'" + (f": did you mean '{guess}'?" if guess else "")
    return text


def _nearest(key: str, known: list[str]) -> str | None:
    """The key that somebody meant: misspelt in its group, in another one, or with its group.

    What two keys have in common is their own words, never the group before them: `model.loss` is
    not `model.stem`.
    """
    group, _, own = key.rpartition(".")
    words = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == group}
    for near in difflib.get_close_matches(own, words, 1):
        return words[near]
    elsewhere = [each for each in known if each.rpartition(".")[2] == own]
    return next(iter(elsewhere or difflib.get_close_matches(key, known, 1, 0.8)), None)
