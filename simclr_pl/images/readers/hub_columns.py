"""What is used of a data set of the library `datasets`: its splits, and the columns of these."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.errors import UserError
from simclr_pl.images.readers.folder import CALLED
from simclr_pl.images.readers.reader import OPTION, SPLITS, InLibrary, classes_of, say_once

Found = Mapping[str, Any]
"""Splits as the library has them, each a `datasets.Dataset`, by their names."""


class Options(NamedTuple):
    """What may stand below `init_args`.

    Attributes:
        image: the column of images (default: the one of the type Image).
        label: the column of labels (default: the one of the type ClassLabel, else one of whole
            numbers called label or labels).
        channels: 1 or 3 (default: 1 where all images are gray).
        train: the split to train on (default: train).
        val: the validation split (default: validation, val, valid).
        test: the test split (default: test).
        config: the configuration, where the data set has several.
        revision: branch, tag or commit of a data set of the hub (default: what the cache has, or
            else the newest).
        streaming: refused where it is true.
    """

    image: str | None = None
    label: str | None = None
    channels: int | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    config: str | None = None
    revision: str | None = None
    streaming: bool = False


def splits_of(found: Found, given: InLibrary, options: Options) -> dict[str, Any]:
    """The splits that are used, by this project's names; a line names the others.

    Raises:
        UserError: no split to train on, no such split, or an empty one.
    """
    chosen = {part: getattr(options, part) for part in SPLITS if getattr(options, part)}
    for split, name in chosen.items():
        if name not in found:
            raise UserError(
                f"{OPTION}.init_args.{split} is '{name}', but {given} has {', '.join(found)}"
            )
    for name in found:
        part = next((part for part in SPLITS if name.casefold() in CALLED[part]), None)
        if part is not None and name not in chosen.values():
            chosen.setdefault(part, name)
    if "train" not in chosen:
        raise UserError(
            f"{OPTION}: {given} has no split called train, but {', '.join(found)}: give the one to "
            "train on as --data.dataset.train NAME"
        )
    left = [name for name in found if name not in chosen.values()]
    if left:
        say_once(f"{given}: splits that are left out: {', '.join(left)}")
    for split, name in chosen.items():
        if not len(found[name]):
            raise UserError(f"{OPTION}: {given}'s {split} split is empty")
    return {part: found[chosen[part]] for part in SPLITS if part in chosen}


def image_column(split: Any, given: InLibrary, options: Options) -> str:
    """The column of images.

    Raises:
        UserError: none, several, or no such column.
    """
    from datasets import Image

    columns: Mapping[str, Any] = split.features
    if options.image is not None:
        _check_column("image", options.image, columns, given)
        return options.image
    images = [name for name, kind in columns.items() if isinstance(kind, Image) or _coded(kind)]
    if len(images) != 1:
        has = (
            f"several columns of images ({', '.join(images)})" if images else "no column of images"
        )
        rest = (
            "" if images else f", but {', '.join(f'{k} ({_kind(v)})' for k, v in columns.items())}"
        )
        raise UserError(
            f"{OPTION}: {given} has {has}{rest}: give the one to use as --data.dataset.image NAME"
        )
    return images[0]


def _coded(kind: Any) -> bool:
    """Whether a column is an image's bytes and path, as files without the library's notes have."""
    return isinstance(kind, dict) and kind.keys() == {"bytes", "path"}


def _kind(kind: Any) -> str:
    """A column's type in a word."""
    return str(getattr(kind, "dtype", type(kind).__name__))


def _check_column(option: str, name: str, columns: Mapping[str, Any], given: InLibrary) -> None:
    if name not in columns:
        raise UserError(
            f"{OPTION}.init_args.{option} is '{name}', but {given} has the columns "
            f"{', '.join(columns)}"
        )


def _label_column(split: Any, given: InLibrary, options: Options) -> str | None:
    """The column of labels; `None` where there is none.

    Raises:
        UserError: several, or no such column.
    """
    from datasets import ClassLabel

    columns: Mapping[str, Any] = split.features
    if options.label is not None:
        _check_column("label", options.label, columns, given)
        return options.label
    found = [name for name, kind in columns.items() if isinstance(kind, ClassLabel)]
    whole = [name for name in ("label", "labels") if "int" in _kind(columns.get(name))]
    found = found or whole
    if len(found) > 1:
        raise UserError(
            f"{OPTION}: {given} has several columns of labels ({', '.join(found)}): give the one "
            "to use as --data.dataset.label NAME, or give --data.labels none"
        )
    return found[0] if found else None


def labels_of(
    splits: dict[str, Any], given: InLibrary, options: Options
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Labels of each split that has some, `int64 [N]`, and the names of the classes.

    Raises:
        UserError: several columns, no such column, or one whose values are no labels.
    """
    column = _label_column(splits["train"], given, options)
    if column is None:
        say_once(f"{given}: no column of labels, all images are unlabelled")
        return {}, ()
    splits = {part: of for part, of in splits.items() if column in of.column_names}
    names = [list(getattr(of.features[column], "names", ())) for of in splits.values()]
    if names.count(names[0]) < len(names):
        raise UserError(
            f"{OPTION}: {given}'s splits have different classes in the column {column}: give all "
            "the same (cast_column)"
        )
    tables = (of.select_columns([column]).with_format("arrow")[:] for of in splits.values())
    values, kind = [table.column(0) for table in tables], _kind(splits["train"].features[column])
    if kind in ("string", "large_string"):
        words = sorted({word for each in values for word in each.unique().to_pylist()} - {None})
        places = {word: place for place, word in enumerate(words)} | {None: UNLABELLED}
        known = [torch.tensor([places[word] for word in each.to_pylist()]) for each in values]
        return dict(zip(splits, known, strict=True)), tuple(words)
    if "int" not in kind and kind != "bool":
        raise UserError(
            f"{OPTION}: the column {column} of {given} is {kind}, but labels must be ClassLabel, "
            "whole numbers or strings"
        )
    arrays = [each.cast("int64").fill_null(UNLABELLED).to_numpy() for each in values]
    if names[0]:
        return dict(zip(splits, map(torch.tensor, arrays), strict=True)), tuple(names[0])
    known, classes = classes_of(arrays, f"{OPTION}: {given}")
    return dict(zip(splits, known, strict=True)), classes
