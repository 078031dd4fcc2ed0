"""YAML as every command reads it: by one set of rules, and with a sentence for what is wrong."""

import copy
import functools
import itertools
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from simclr_pl.core.errors import UserError
from simclr_pl.core.paths import expanded

LARGEST_BYTES = 2**20
"""Of a file, at most; a recipe has some thousands."""

MOST_VALUES = 100_000
"""Of a text, with its aliases written out."""

GROUPS = ("trainer", "model", "data")
"""Keys of a recipe that hold further keys, of which commands other than `fit` read some."""

DEEPEST = 100
"""Levels of mappings and lists: a parser that recurses survives a limited number alone."""

_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NO_UTF8 = re.compile(r"(?<!\\)((?:\\\\)*)\\u[dD][cC]([89a-fA-F][0-9a-fA-F])")
"""A byte of a path that is not UTF-8, as `dump_yaml` writes it, behind no or whole backslashes."""

_STAND_IN, _BYTE = 0xF700, 0xDC00
"""Private characters that stand for such bytes, since the reader refuses the bytes themselves."""


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
        if path.exists() and not path.is_file():
            trouble = f"{path} is {'a folder' if path.is_dir() else 'a device or a pipe'}"
        elif (size := path.stat().st_size) > LARGEST_BYTES:
            most = f"(of at most {LARGEST_BYTES:,} bytes)"
            trouble = f"{path} has {size:,} bytes and is no configuration {most}"
        else:
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        trouble = f"{path} is no text in UTF-8"
    except FileNotFoundError:
        trouble = f"there is no configuration at {path}"
    except OSError as error:
        trouble = f"{path} cannot be read ({error.strerror})"
    raise UserError(f"{trouble}: give a YAML file")


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
    """The sentence about a group of keys that was given a list, a number or a word."""
    return f"{name} is {value}, but must be keys with values, as in {name}: {{key: value}}"


def _with_bytes(value: Any) -> Any:
    """The values with the bytes of their paths put back."""
    if isinstance(value, dict):
        return {_with_bytes(key): _with_bytes(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_bytes(each) for each in value]
    if isinstance(value, str):
        return value.translate({_STAND_IN + b: _BYTE + b for b in range(128, 256)})
    return value


class _RefusedError(yaml.YAMLError):
    """YAML that every command refuses."""


def _check(text: str) -> None:
    """Refuses a text that no command follows, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, Loader=_FAST):  # on deeper texts `compose` ends the process
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _RefusedError(f"values are nested deeper than {DEEPEST} levels")
    root = yaml.compose(text, Loader=_FAST)
    if root is not None and _count(root, (), {}) > MOST_VALUES:
        raise _RefusedError(f"it has more than {MOST_VALUES:,} values, with aliases written out")


def _count(node: yaml.Node, above: tuple[yaml.Node, ...], known: dict[yaml.Node, int]) -> int:
    """The number of values in a node, with aliases written out.

    Args:
        node: of a tree in which an alias is the very node that it stands for.
        above: the nodes that this one is in.
        known: counts of nodes that have been looked at.

    Raises:
        _RefusedError: a node that is part of itself; a key that stands twice.
    """
    if node in above:
        raise _RefusedError(f"the value in line {_line(node)} is part of itself")
    if node not in known:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            _check_keys([key for key, _ in node.value])
            children = itertools.chain.from_iterable(node.value)
        known[node] = 1 + sum(_count(child, (*above, node), known) for child in children)
    return known[node]


def _check_keys(keys: list[yaml.Node]) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in lines:
                raise _RefusedError(
                    f"key {key.value} stands in line {lines[key.value]} and again in line "
                    f"{_line(key)}, where the second would drop the first: make them one"
                )
            lines[key.value] = _line(key)


def _line(node: yaml.Node) -> int:
    """The line where a value begins, counted from 1."""
    return int(node.start_mark.line) + 1


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
