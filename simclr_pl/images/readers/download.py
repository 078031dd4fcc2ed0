"""A download that is done once: one process fetches, the others wait; files appear whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

from simclr_pl.locks import alone


def fetch_once(
    name: str,
    root: Path,
    there: Callable[[Path], bool],
    fetch: Callable[[Path, Path], None],
) -> None:
    """Fetches a data set that is not there, whatever other processes and machines do meanwhile.

    Files are fetched into a folder of their own below `root`, and moved to their places when all of
    them are whole: one that was broken off, or killed, has left nothing that could be taken for
    data, and is done again from the start.

    Args:
        name: of the data set.
        root: the folder that it belongs into; one that has it is only read.
        there: whether a folder has all of it.
        fetch: is given `root` and the folder to fetch into, and raises unless all is whole.

    Raises:
        OSError: `root` cannot be written.
        UserError: another process has had the lock for `PATIENCE` seconds.
    """
    if there(root):
        return
    root.mkdir(parents=True, exist_ok=True)
    with alone(root / f".{name}.lock", f"to get {name} into {root}"):
        if there(root):  # by now
            return
        unfinished = root / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of one that was killed
        try:
            unfinished.mkdir()
            fetch(root, unfinished)
            _move(unfinished, root)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Moves files to the same places below `target`, each in one step."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        elif not path.is_symlink():  # to what is in its place already
            path.replace(place)
