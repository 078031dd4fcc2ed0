"""Trainer options that Lightning refuses: its message as a sentence that names the option."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from simclr_pl.core.errors import UserError

_BY_ANOTHER_NAME = {"Timer(duration": "max_time", "`EarlyStopping` callback": "callbacks"}
"""How Lightning's messages speak of an option whose name they don't say."""


@contextmanager
def refused_by_lightning(options: Mapping[str, Any], *, building: bool = False) -> Iterator[None]:
    """Turns what Lightning says of a Trainer's options into a `UserError`.

    Args:
        options: the Trainer's, by name.
        building: whether nothing but the Trainer is made within: then every refusal is one of its
            options'. Elsewhere an exception counts only if its message quotes one.

    Raises:
        UserError: names the option, its value, and what Lightning says of it.
    """
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
        text = " ".join(str(error).split())
        name = _named_in(text, options, "" if building else "`")
        if name is not None:
            plain = isinstance(options[name], int | float | str)
            value = f"trainer.{name} is {options[name]}" if plain else f"trainer.{name}"
            raise UserError(f"{value}: {text}") from error
        if building:
            raise UserError(f"Lightning's Trainer refuses its options: {text}") from error
        raise


def _named_in(text: str, options: Mapping[str, Any], quote: str) -> str | None:
    """The option that a message is about: the first that it names."""
    for words, name in _BY_ANOTHER_NAME.items():
        if words in text and name in options:
            return name
    found = {name: re.search(rf"(?<![\w.]){quote}{name}(?!\w)", text) for name in options}
    places = {name: match.start() for name, match in found.items() if match}
    return min(places, key=places.__getitem__, default=None)
