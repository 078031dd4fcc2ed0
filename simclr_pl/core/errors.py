"""The exceptions whose messages are written for the person at the keyboard."""

from collections.abc import Callable

UNFINISHED = 75
"""Exit code of a run that was told to stop and can go on (EX_TEMPFAIL of sysexits.h)."""


GIVEN_UP = 1
"""Exit code of a run that was told to stop and would not get anywhere by being started again."""


class UserError(ValueError):
    """Something a user can put right: the message names the thing and the remedy in a sentence.

    The command line prints it without a traceback (`--debug` adds one); from Python it is an
    ordinary `ValueError`.
    """


class UnfinishedError(Exception):
    """A run was told to stop, has saved what it had, and is to be continued.

    The command line prints it, then does what is left to do, and ends with the exit code.

    Args:
        message: what has stopped it, and how it goes on.
        code: the exit code.
        then: is called when the message is out, and returns a sentence where it failed.
    """

    def __init__(
        self, message: str, code: int = UNFINISHED, then: Callable[[], str | None] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.then = code, then


def no_labels(split: str) -> UserError:
    """What is said of a split without a single label that was given to an evaluation."""
    return UserError(
        f"the {split} split has no labels, which this evaluation needs: put its images into one "
        "folder a class, score another split, or judge the run by its curves (report)"
    )


def printable(text: str) -> str:
    r"""A name from a file system as one that can be printed, and written to any file.

    Bytes that are no UTF-8 become `\xe4`, and characters that would break a line or don't show
    are escaped as in Python's own strings.
    """
    known = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)
