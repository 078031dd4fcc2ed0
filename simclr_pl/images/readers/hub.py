"""Data sets of the Hugging Face hub, or written by its library `datasets`.

The library keeps images as Arrow files and maps them into memory: an image is read by its number,
in any order. Only images with bytes of their own are decoded here, as files are.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simclr_pl.core.data.sources import Labels
from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.core.lookup import Choice, construct
from simclr_pl.core.paths import expanded
from simclr_pl.images.readers.encoded import HubImages, HubNumbers, check_channels, raw_of
from simclr_pl.images.readers.hub_columns import (
    Found,
    Options,
    image_column,
    labels_of,
    splits_of,
)
from simclr_pl.images.readers.reader import OPTION, Entry, InLibrary, Raw, first_line, say_once
from simclr_pl.images.workers.crops import Reading

PATIENCE_S = 10.0
"""Seconds that the hub has to say that it is there."""

_FILES = {".parquet": "parquet", ".arrow": "arrow"}
"""Names of the library's readers, by a file's suffix."""


def hub_set(given: InLibrary, labels: Labels, reading: Reading) -> Entry:
    """The row of a data set of the hub, or of a folder or file on disk.

    Args:
        given: its name on the hub, or a path; `init_args` as in `Options`.
        labels: whether labels are wanted.
        reading: how images are read.

    Raises:
        UserError: an unknown argument; streaming.
    """
    options: Options = construct(Choice(str(given), Options, given.args), OPTION)
    if options.streaming:
        raise UserError(
            f"{OPTION}: {given} cannot be streamed, since a stream has no images by number, and "
            "epochs, resumes and ranks need them: leave out streaming"
        )
    check_channels(options.channels, reading)

    def read(_: Path) -> Raw:
        return _read(given, options, labels, reading)

    return Entry(read, prepare=lambda _: _found(given, options))


def _read(given: InLibrary, options: Options, labels: Labels, reading: Reading) -> Raw:
    splits = splits_of(_found(given, options), given, options)
    image = image_column(splits["train"], given, options)
    folder = expanded(given.name).resolve()
    kind = HubNumbers if reading.numbers else HubImages
    try:
        items = {
            part: kind(of, image, f"{given} {part}", reading, folder) for part, of in splits.items()
        }
    except Exception as error:  # no such column in a split, or one of another kind
        raise UserError(
            f"{OPTION}: {given}: the column {image} has no images in some split "
            f"({in_one_line(error)})"
        ) from error
    known = labels_of(splits, given, options) if labels == "given" else ({}, ())
    return raw_of(items, options.channels, *known)


# Where the data are -------------------------------------------------------------------------------


def _found(given: InLibrary, options: Options) -> Found:
    """Opens a data set, and downloads it before where that is needed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{OPTION}: {given} needs the package datasets: pip install 'simclr_pl[hub]'"
        ) from error
    path = expanded(given.name)
    if not path.exists() and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", given.name):
        raise UserError(f"{OPTION}: {given}: there is no file or folder {path}")
    if path.exists() and options.revision is not None:
        raise UserError(f"{OPTION}: {given} is on this disk: leave out revision")
    with _quiet(datasets):
        try:
            if path.exists():
                found = _on_disk(datasets, path.resolve(), options)
            else:
                found = _on_hub(datasets, given, options)
        except UserError:
            raise
        except Exception as error:  # the library raises anything for broken files
            why = in_one_line(error.__cause__ or error)
            raise UserError(f"{OPTION}: {given} cannot be read ({why})") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _on_disk(datasets: Any, path: Path, options: Options) -> Any:
    """A folder that `save_to_disk` has written, files of another kind, or a folder of these."""
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(str(path))
    if path.is_dir():
        return datasets.load_dataset(str(path), options.config)
    if path.suffix not in _FILES:
        raise UserError(
            f"{OPTION}: hub:{path} is no file of {' or '.join(_FILES)}: give one, or a folder"
        )
    return datasets.load_dataset(_FILES[path.suffix], data_files={"train": str(path)})


def _on_hub(datasets: Any, given: InLibrary, options: Options) -> Any:
    """A data set of the cache, so that a run that goes on sees the same; else of the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    found = _cached(datasets, given.name, options)
    if found is not None:
        return found
    try:
        about = HfApi().dataset_info(given.name, revision=options.revision, timeout=PATIENCE_S)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = given.name if options.revision is None else f"{given.name} at {options.revision}"
        raise UserError(
            f"{OPTION}: there is no file or folder {given.name}, and the Hugging Face hub has no "
            f"data set {what} that everybody may read: look at its name, or say who you are (hf "
            "auth login)"
        ) from error
    except Exception as error:
        raise UserError(
            f"{OPTION}: {given} is not in the cache of `datasets`, and the Hugging Face hub cannot "
            f"be reached ({first_line(error)}): where there is internet, write "
            f"datasets.load_dataset('{given.name}').save_to_disk('FOLDER') in Python, and give "
            "hub:FOLDER here"
        ) from error
    try:
        return datasets.load_dataset(given.name, options.config, revision=about.sha)
    except RuntimeError as error:
        if "scripts" not in str(error):
            raise
        raise UserError(
            f"{OPTION}: {given} comes by a script, which is not run: give --data.dataset.revision "
            "refs/convert/parquet, where the hub keeps its images as files"
        ) from error


def _cached(datasets: Any, name: str, options: Options) -> Any:
    """A data set that was downloaded before; `None` for another revision than is asked for."""
    from huggingface_hub import try_to_load_from_cache

    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        found = datasets.load_dataset(name, options.config)
    except Exception:  # it is not there
        return None
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    commit = Path(next(iter(found.values())).cache_files[0]["filename"]).parent.name
    wanted = options.revision
    if wanted is not None and not commit.startswith(wanted):
        readme = try_to_load_from_cache(name, "README.md", revision=wanted, repo_type="dataset")
        if not isinstance(readme, str) or Path(readme).parent.name != commit:
            return None
    say_once(f"hub:{name}: commit {commit[:12]}, which was downloaded before")
    return found


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """The library says nothing, and draws bars in a terminal only."""
    from huggingface_hub import utils

    hub: Any = utils
    logs = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [log.level for log in logs]
    drawn = {datasets: datasets.are_progress_bars_disabled(), hub: hub.are_progress_bars_disabled()}
    for log in logs:
        log.setLevel(logging.CRITICAL)
    for library in drawn if not sys.stderr.isatty() else ():
        library.disable_progress_bars()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        for library, disabled in drawn.items():
            if not disabled:
                library.enable_progress_bars()
