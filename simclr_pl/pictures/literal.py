"""Strings from elsewhere in pictures: names of classes, of data and of runs."""


def literal(text: str) -> str:
    """A string that matplotlib draws letter by letter.

    Two `$` would be a formula, and one that is none an error; a leading `_` would keep a line out
    of the legend, which a space before it does not.
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
