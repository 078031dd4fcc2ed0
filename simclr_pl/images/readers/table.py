"""A manifest's table: a CSV or a parquet file, read to columns of text."""

import csv
import os
from pathlib import Path
from typing import Any

from simclr_pl.core.errors import UserError
from simclr_pl.images.readers.reader import first_line, say_once
from simclr_pl.writing import printable

COLUMNS = ("path", "label", "split", "group")
"""Columns that are read; only `path` must be there."""

PARQUET = (".parquet", ".pq")
"""Suffixes of parquet files, in small letters; any other file is read as CSV."""

NAMED = 3
"""Columns, rows or files that a sentence names."""


def read_table(path: Path) -> dict[str, list[str]]:
    """The columns of a manifest that there are of `COLUMNS`, each as text; empty for nothing.

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
        columns = _of_parquet(path) if parquet else _of_csv(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or first_line(error)}): save it again"
        ) from error
    if not columns["path"]:
        raise UserError(f"{path} has a header and no rows: write a row for each image")
    for name, column in columns.items():
        if any("\0" in value for value in column):
            raise UserError(f"{path} has a zero byte in column {name}: save it again as text")
    return columns


def _check_header(path: Path, header: list[str]) -> list[str]:
    """The columns of the header that are read."""
    if "path" not in header:
        found = ", ".join(map(printable, header[: NAMED + 3])) or "nothing"
        other = any(mark in name for name in header for mark in ";\t|")
        raise UserError(
            f"{path} has no column path (its first line has {found}): "
            + ("separate the columns by commas" if other else "name the column of the files so")
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


def _of_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            wanted = [(name, header.index(name)) for name in _check_header(path, header)]
            columns: dict[str, list[str]] = {name: [] for name, _ in wanted}
            for row in reader:
                if not row:  # an empty line
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} columns, and the header has "
                        f"{len(header)}: put a path with a comma into double quotes"
                    )
                for name, place in wanted:
                    columns[name].append(row[place])
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error.reason}): save it as CSV in UTF-8, or as parquet "
            "(with the suffix .parquet)"
        ) from error
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: no CSV ({first_line(error)}): save it again"
        ) from error
    return columns


def _of_parquet(path: Path) -> dict[str, list[str]]:
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
            wanted = _check_header(path, file.schema_arrow.names)
            table = file.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no parquet file that can be read ({first_line(error)}): save it again"
        ) from error
    columns = {}
    for name in wanted:
        if pa.types.is_nested(table.schema.field(name).type):
            raise UserError(f"{path}: column {name} holds lists or records: give it text")
        columns[name] = list(map(_text, table[name].to_pylist()))
    return columns


def _text(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 - not a number, as pandas has it
        return ""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
