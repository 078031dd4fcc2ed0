"""The door `data.dataset`: the readers of data sets are a ring's, imported when one is wanted."""

from pathlib import Path
from typing import Any

from simclr_pl.core.data.sources import MAX_PIXELS, Splits, check_splits
from simclr_pl.core.lookup import Door, lookup, name_of

READERS = "simclr_pl.images.datasets"
"""The module that reads data sets by name, and those of one's own."""


def prepare_dataset(given: Door, root: str) -> None:
    """Downloads what is missing.

    Args:
        given: a name, a class path, or `Splits`, which are there.
        root: folder of the data.

    Raises:
        UserError: an unknown data set, or no internet.
    """
    if not isinstance(given, Splits):
        _reader("prepare")(given, root)


def read_dataset(
    given: Door,
    root: str,
    split_seed: int,
    kept: Any,
    reading: dict[str, Any],
    left_out: Path | None,
) -> Splits:
    """A data set's images, with a validation holdout where it brings none.

    Args:
        given: a name, a class path, or `Splits`.
        root: folder of the data.
        split_seed: of the holdout.
        kept: the holdout of the run that reads it, if it has begun (`HeldOut`).
        reading: the options `labels`, `on_bad_image`, `max_pixels`, `range` and `pages`.
        left_out: file that names the images that cannot be read, if there is a place for it.

    Raises:
        UserError: whatever is wrong with the data.
    """
    as_they_are = list(reading.values()) == ["given", "error", MAX_PIXELS, None, None]
    if isinstance(given, Splits) and as_they_are:
        check_splits(given, name_of(given))
        return given
    found: Splits = _reader("load")(given, root, split_seed, kept, **reading, left_out=left_out)
    return found


def _reader(name: str) -> Any:
    return lookup(f"{READERS}.{name}", {}, "data.dataset").target
