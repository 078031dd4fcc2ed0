"""The exception whose message is written for the person at the keyboard."""

from typing import Any


class UserError(ValueError):
    """Something a user can put right: the message names the thing and the remedy in a sentence.

    The command line prints it without a traceback (`--debug` adds one); from Python it is an
    ordinary `ValueError`.
    """


def in_one_line(error: BaseException) -> str:
    """An exception's class and message, for a sentence about code that may raise anything."""
    message = str(error.msg if isinstance(error, SyntaxError) else error)
    return f"{type(error).__name__}: {' '.join(message.split())}"


def check(fits: bool, option: str, value: Any, wanted: str) -> None:
    """Refuses an option's value in the sentence that all such refusals share.

    Args:
        fits: whether the value can be used; compare so that NaN does not fit (`value > 0`).
        option: its name as the user writes it: `data.batch_size`.
        value: as it was given.
        wanted: the values that fit, in words: `at least 1`.

    Raises:
        UserError: the value does not fit.
    """
    if not fits:
        raise UserError(f"{option} is {value!r}, but must be {wanted}")
