"""A download that is done once: one process fetches, the others wait; files appear whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

from simclr_pl.locks import alone
from simclr_pl.writing import as_folder


def fetch_once(
    name: str,
    root: Path,
    there: Callable[[Path], bool],
    fetch: Callable[[Path, Path], None],
) -> None:
    """Fetches a data set that is not there, also where other processes and machines want it too.

    Files are fetched into a hidden folder below `root`, and moved to their places when all of them
    are whole. A download that was broken off or killed leaves nothing that could be taken for data,
    and begins again.

    Args:
        name: the data set's name.
        root: the folder that the data belong into; it is only read where it has them.
        there: whether a folder has all of the data.
        fetch: called with `root` and the folder to fetch into; it raises unless all is whole.

    Raises:
        OSError: `root` cannot be written.
        UserError: another process has had the lock for `locks.LOCK_TIMEOUT_S` seconds.
    """
    if there(root):
        return
    root.mkdir(parents=True, exist_ok=True)
    hidden = f".{as_folder(name)}"
    with alone(root / f"{hidden}.lock", f"to get {name} into {root}"):
        if there(root):  # another process has fetched it
            return
        unfinished = root / f"{hidden}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # a killed process may have left it
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
        elif not path.is_symlink():  # a link leads to an archive that is in its place already
            path.replace(place)
