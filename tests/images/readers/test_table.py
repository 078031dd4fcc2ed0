"""A manifest's table: CSV and parquet are the same columns of text, and what is neither is said."""

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simclr_pl import UserError
from simclr_pl.images.readers.table import read_table

CSV = 'path,label\n"a,b.png",cat\n\nd/c.png,\n'


def csv_of(folder: Path, content: str | bytes) -> Path:
    path = folder / "images.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet_of(folder: Path, **columns: Any) -> Path:
    path = folder / "images.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def columns_of(path: Path) -> dict[str, list[str]]:
    table = read_table(path)
    rows = {name: words.rows() for name, words in table.words.items()}
    return {"path": [os.fsdecode(name) for name in table.paths], **rows}


@pytest.mark.parametrize(
    "content",
    [CSV, CSV.encode("utf-8-sig"), CSV.replace("\n", "\r\n"), CSV.replace("path,", " path ,")],
    ids=["plain", "with a mark of UTF-8", "of Windows", "with spaces in the header"],
)
def test_a_csv_is_columns_of_text(tmp_path: Path, content: str | bytes) -> None:
    columns = columns_of(csv_of(tmp_path, content))
    assert columns == {"path": ["a,b.png", "d/c.png"], "label": ["cat", ""]}


def test_a_parquet_file_is_the_same_columns(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "group": pa.array(["x", None]).dictionary_encode(),
        "label": pa.array([3, None]),
        "path": pa.array([b"a\xff.png", b"b.png"]),
    }
    found = columns_of(parquet_of(tmp_path, **columns))
    assert found == {"path": ["a\udcff.png", "b.png"], "label": ["3", ""], "group": ["x", ""]}
    numbers = parquet_of(tmp_path, path=["a", "b"], label=pa.array([float("nan"), 1.5]))
    assert columns_of(numbers)["label"] == ["", "1.5"]


def test_columns_that_are_not_read_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv_of(tmp_path, "path,width,height,Split\na.png,3,4,val\n")
    assert columns_of(path) == columns_of(path) == {"path": ["a.png"]}
    assert capsys.readouterr().out == (
        f"{path}: 3 columns are not read (width, height, Split): those that are read are called "
        "path, label, split, group\n"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no column path (its first line has nothing): begin with a line as path,label"),
        ("a.png,cat\nb.png,dog\n", "(its first line has a.png, cat): begin with a line as path,"),
        ("Path,label\na.png,b\n", "(its first line has Path, label): name the column of the files"),
        ("PK" + "x" * 99, f"(its first line has PK{'x' * 38}): begin with a line"),
        ("file,label\na,b\n", "(its first line has file, label): name the column"),
        ("path;label\na;b\n", "(its first line has path;label): separate the columns by commas"),
        ("path\tlabel\n", "separate the columns by commas"),
        ("path,label,label\n", "has 2 columns label: keep one of them"),
        ("path,label\n", "has a header and no rows: write a row for each image"),
        ("path,label\na.png,x\na,b.png,x\n", ", line 3: 3 columns, and the header has 2: put a"),
        ("path,label\na.png\n", ", line 2: 1 columns, and the header has 2"),
        ("path\na\0.png\n", "has a zero byte in column path: save it again as text"),
        ("path,label\na.png,x\0\n", "has a zero byte in column label"),
        (b"path\n\xe4.png\n", "is no text in UTF-8 (invalid continuation byte): save it as CSV"),
        ("path\na.png\n".encode("utf-16"), "is no text in UTF-8 (invalid start byte): save it"),
        ('path\n"a.png\n', "no CSV (unexpected end of data): save it again"),
        ("path\n" + "a" * 200_000, "no CSV (field larger than field limit"),
    ],
)
def test_what_is_no_such_csv_is_said(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = csv_of(tmp_path, content)
    with pytest.raises(UserError) as refused:
        read_table(path)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_a_parquet_file_that_is_none_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = parquet_of(tmp_path, path=["a.png"] * 1000)
    whole.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"images.parquet is no parquet file that can be read \("):
        read_table(whole)
    whole.write_bytes(b"")
    with pytest.raises(UserError, match=r"images.parquet is no parquet file that can be read \("):
        read_table(whole)
    with pytest.raises(UserError, match="column path holds lists or records: give it text"):
        read_table(parquet_of(tmp_path, path=[["a.png"]]))
    with pytest.raises(UserError, match="has no column path"):
        read_table(parquet_of(tmp_path, file=["a.png"]))
    with pytest.raises(UserError, match="has a header and no rows"):
        read_table(parquet_of(tmp_path, path=pa.array([], pa.string())))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"needs the package pyarrow: pip install 'simclr_pl\[parquet\]', or save"
    ):
        read_table(whole)


def test_a_manifest_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the manifest .*x.csv does not exist: give a CSV or"):
        read_table(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"the manifest .* is a folder: give a CSV or parquet file"):
        read_table(tmp_path)
