"""The exception whose message is written for the person at the keyboard."""


class UserError(ValueError):
    """Something a user can put right: the message names the thing and the remedy in a sentence.

    The command line prints it without a traceback (`--debug` adds one); from Python it is an
    ordinary `ValueError`.
    """
