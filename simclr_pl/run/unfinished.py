"""The end of a run that is to be continued."""

from collections.abc import Callable

UNFINISHED = 75
"""Exit code of a run that was told to stop and can go on (EX_TEMPFAIL of sysexits.h)."""

GIVEN_UP = 1
"""Exit code of a run that was told to stop and would not get anywhere by being started again."""


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
