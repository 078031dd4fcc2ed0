"""A manifest's table: a CSV or a parquet file, read to columns that ten million rows fit into."""

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simclr_pl.core.errors import UserError
from simclr_pl.images.names import Array, Names
from simclr_pl.images.readers.reader import first_line, say_once
from simclr_pl.writing import printable

COLUMNS = ("path", "label", "split", "group")
"""Columns that are read; only `path` must be there."""

PARQUET = (".parquet", ".pq")
"""Suffixes of parquet files, in small letters; any other file is read as CSV."""

NAMED = 3
"""Columns, rows or files that a sentence names."""

SHOWN = 40
"""Letters of a column's name that a sentence shows."""


class Words(NamedTuple):
    """A column of texts, of which many are alike.

    Attributes:
        words: the different texts; an empty one is nothing.
        codes: `int32 [N]`, which of them each row has.
    """

    words: list[str]
    codes: Array

    def rows(self) -> list[str]:
        """The text of each row."""
        return [self.words[code] for code in self.codes.tolist()]

    def at(self, index: Array) -> "Words":
        """The column's rows at `index`."""
        return Words(self.words, self.codes[index])

    def there(self) -> set[str]:
        """The texts of all rows, without the empty one."""
        return {self.words[code] for code in np.unique(self.codes)} - {""}


class Table(NamedTuple):
    """The columns of a manifest.

    Attributes:
        paths: of each row, as it is written.
        words: the columns label, split and group, as far as they are there.
    """

    paths: Names
    words: dict[str, Words]


def read_table(path: Path) -> Table:
    """The columns of a manifest that there are of `COLUMNS`; empty for nothing.

    A line names the columns that are not read.

    Args:
        path: a CSV file (UTF-8, commas, a header) or, by its suffix, a parquet file.

    Raises:
        UserError: no such file, one that cannot be read, no column `path`, a column that is there
            twice, or no rows.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"the manifest {path} {what}: give a CSV or parquet file with a column path as "
            "--data.root"
        )
    parquet = path.suffix.lower() in PARQUET
    try:
        table = _table(path, _of_parquet(path) if parquet else _of_csv(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or first_line(error)}): save it again"
        ) from error
    if not table.paths:
        raise UserError(f"{path} has a header and no rows: write a row for each image")
    return table


def _table(path: Path, read: Iterator[Sequence[Any]]) -> Table:
    """The table of a header, which is read first, and of rows."""
    wanted = next(read)
    place = wanted.index("path")
    others = {name: at for at, name in enumerate(wanted) if at != place}
    letters, sizes = bytearray(), array("i")
    known: dict[str, dict[str, int]] = {name: {} for name in others}
    codes = {name: array("i") for name in others}
    for row in read:
        name = os.fsencode(row[place])
        letters += name
        sizes.append(len(name))
        for column, at in others.items():
            words = known[column]
            codes[column].append(words.setdefault(row[at], len(words)))
    broken = ["path"] * (b"\0" in letters)
    broken += [column for column, words in known.items() if any("\0" in word for word in words)]
    if broken:
        raise UserError(f"{path} has a zero byte in column {broken[0]}: save it again as text")
    of = {column: Words([*known[column]], np.frombuffer(codes[column], "i")) for column in others}
    return Table(Names.joined(letters, sizes), of)


def _check_header(path: Path, header: list[str]) -> list[str]:
    """The columns of the header that are read."""
    if "path" not in header:
        found = ", ".join(printable(name[:SHOWN]) for name in header[: NAMED + 3]) or "nothing"
        other = any(mark in name for name in header for mark in ";\t|")
        named = {name.strip().lower() for name in header} & {*COLUMNS}
        remedy = "name the column of the files so" if named else "begin with a line as path,label"
        raise UserError(
            f"{path} has no column path (its first line has {found}): "
            + ("separate the columns by commas" if other else remedy)
        )
    for name in COLUMNS:
        if header.count(name) > 1:
            raise UserError(f"{path} has {header.count(name)} columns {name}: keep one of them")
    unknown = [printable(name) for name in header if name not in COLUMNS]
    if unknown:
        more = ", ..." if len(unknown) > NAMED else ""
        say_once(
            f"{path}: {len(unknown)} columns are not read ({', '.join(unknown[:NAMED])}{more}): "
            f"those that are read are called {', '.join(COLUMNS)}"
        )
    return [name for name in COLUMNS if name in header]


def _of_csv(path: Path) -> Iterator[Sequence[str]]:
    """The names of the columns that are read, and then their texts, row by row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            wanted = _check_header(path, header)
            yield wanted
            places = [header.index(name) for name in wanted]
            for row in reader:
                if not row:  # an empty line
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} columns, and the header has "
                        f"{len(header)}: put a path with a comma into double quotes"
                    )
                yield [row[place] for place in places]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error.reason}): save it as CSV in UTF-8, or as parquet "
            "(with the suffix .parquet)"
        ) from error
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: no CSV ({first_line(error)}): save it again"
        ) from error


def _of_parquet(path: Path) -> Iterator[Sequence[str]]:
    """As `_of_csv`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            f"{path} is a parquet file, which needs the package pyarrow: pip install "
            "'simclr_pl[parquet]', or save it as CSV"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            wanted = _check_header(path, schema.names)
            yield wanted
            for name in wanted:
                if pa.types.is_nested(schema.field(name).type):
                    raise UserError(f"{path}: column {name} holds lists or records: give it text")
            for batch in file.iter_batches(columns=wanted):
                columns = [map(_text, batch.column(name).to_pylist()) for name in wanted]
                yield from zip(*columns, strict=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no parquet file that can be read ({first_line(error)}): save it again"
        ) from error


def _text(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 - not a number, as pandas has it
        return ""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
