"""YAML as every command reads it: by one set of rules, and with a sentence for what is wrong."""

import copy
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from simclr_pl.core.errors import UserError
from simclr_pl.core.paths import expanded

LARGEST_BYTES = 2**20
"""Of a file; a recipe has some thousands."""

MOST_VALUES = 100_000
"""That a text may have when its aliases are written out."""

GROUPS = ("trainer", "model", "data")
"""Keys of a recipe that hold further keys, of which commands other than `fit` read some."""

DEEPEST = 100
"""Levels of mappings and lists, of which the parser takes no number in peace."""

_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NO_UTF8 = re.compile(r"(?<!\\)((?:\\\\)*)\\u[dD][cC]([89a-fA-F][0-9a-fA-F])")
"""A byte of a path that is not UTF-8, as `dump_yaml` writes it, behind no or whole backslashes."""

_STAND_IN, _BYTE = 0xF700, 0xDC00
"""Characters of nobody's, for such bytes on their way through a reader that refuses them."""


def load_yaml(text: str) -> Any:
    """Values of a text by jsonargparse's rules: `3e-1` is a number, and no key stands twice.

    Args:
        text: YAML, or JSON.

    Raises:
        yaml.YAMLError: not YAML; a key that stands twice; aliases that have no end.
    """
    try:
        return _checked(text)
    except yaml.YAMLError:
        readable, count = _NO_UTF8.subn(r"\1\\uF7\2", text)
        if not count:
            raise
        return _with_bytes(_checked(readable))


def _checked(text: str) -> Any:
    _check(text)
    return get_loader("yaml")(text)


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        UserError: no such file; a folder, a device or a pipe; too large a file, or no text.
    """
    path = expanded(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a YAML file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a device or a pipe: give a YAML file")
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise UserError(
                f"{path} has {size:,} bytes and is no configuration: give a YAML file (of at most "
                f"{LARGEST_BYTES:,} bytes)"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: give a YAML file") from error
    except FileNotFoundError as error:
        raise UserError(f"there is no configuration at {path}: give a YAML file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a YAML file") from error


def read_config(path: Path) -> dict[str, Any]:
    """A YAML configuration, which is read once as long as its file stays the same.

    Raises:
        UserError: no such file, or one that no configuration can be; not YAML; a key twice.
    """
    try:
        about = path.stat()
    except OSError:
        return _read(path, 0, 0, 0)
    return copy.deepcopy(_read(path, about.st_ino, about.st_size, about.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _read(path: Path, inode: int, size: int, changed: int) -> dict[str, Any]:
    try:
        content = load_yaml(read_text(path))
    except yaml.reader.ReaderError as error:  # control characters
        raise UserError(f"{path} is no text: give a YAML file") from error
    except _RefusedError as error:
        raise UserError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a configuration: it should map keys to values")
    for name in GROUPS:
        if not isinstance(content.get(name), dict | None):
            raise UserError(f"{path}: {no_mapping(name, content[name])}")
    return content


def no_mapping(name: str, value: Any) -> str:
    """What is said of a group of keys that was given a list, a number or a word."""
    return f"{name} is {value}, but must be keys with values, as in {name}: {{key: value}}"


def _with_bytes(value: Any) -> Any:
    """Values whose paths have their bytes again."""
    if isinstance(value, dict):
        return {_with_bytes(key): _with_bytes(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_bytes(each) for each in value]
    if isinstance(value, str):
        return value.translate({_STAND_IN + b: _BYTE + b for b in range(128, 256)})
    return value


class _RefusedError(yaml.YAMLError):
    """YAML that no command follows."""


@dataclass
class _Open:
    """A mapping or list that is being read."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    at_key: bool = True
    lines: dict[str, int] = field(default_factory=dict)

    def add(self, event: yaml.Event, values: int) -> None:
        """Counts an entry, and looks at it where it is a key."""
        self.values += values
        if self.is_mapping and self.at_key and isinstance(event, yaml.ScalarEvent):
            key, line = event.value, _line(event)
            if key in self.lines and key != "<<":
                raise _RefusedError(
                    f"key {key} stands in line {self.lines[key]} and again in line {line}, where "
                    "the second would drop the first: make them one"
                )
            self.lines[key] = line
        self.at_key = not self.at_key


def _line(event: yaml.Event) -> int:
    """Where it begins, counted from 1."""
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _check(text: str) -> None:
    """Goes through a text event by event, before anything is built from it."""
    whole = _Open(None, is_mapping=False)
    stack = [whole]
    known: dict[str, int] = {}  # values of what is anchored, written out
    for event in yaml.parse(text, Loader=_FAST):
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(stack) > DEEPEST:
                raise _RefusedError(f"values are nested deeper than {DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            done = stack.pop()
            known |= {done.anchor: done.values} if done.anchor else {}
            stack[-1].add(event, done.values)
        elif isinstance(event, yaml.AliasEvent):
            if any(each.anchor == event.anchor for each in stack):
                raise _RefusedError(f"*{event.anchor} in line {_line(event)} is part of itself")
            stack[-1].add(event, known.get(str(event.anchor), 1))
        elif isinstance(event, yaml.ScalarEvent):
            known |= {event.anchor: 1} if event.anchor else {}
            stack[-1].add(event, 1)
        if stack[-1].values > MOST_VALUES:
            raise _RefusedError(
                f"it has more than {MOST_VALUES:,} values, with aliases written out"
            )


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would not read as text."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def dump_yaml(content: dict[str, Any]) -> str:
    """A configuration as text that reads back as the same values."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
