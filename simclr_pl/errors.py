"""The one exception whose message is written for the person at the keyboard."""


class UserError(ValueError):
    """Something a user can put right: the message names the thing and the remedy in a sentence.

    The command line prints it without a traceback (`--debug` adds one); from Python it is an
    ordinary `ValueError`.
    """


def no_labels(split: str) -> UserError:
    """What is said of a split without a single label that was given to an evaluation."""
    return UserError(
        f"the {split} split has no labels, which this evaluation needs: put its images into one "
        "folder a class, score another split, or judge the run by its curves (report)"
    )
