"""Rows of CSV, JSON Lines and Parquet files: what scanning finds, reading gives again."""

from __future__ import annotations

import logging
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlplatform.data import row_groups, tables
from mlplatform.data.row_groups import RowGroups
from mlplatform.data.tables import CSVTable, JSONTable, ListTable, ParquetTable, Table
from mlplatform.errors import DataError


def both(table: Table) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return the sound rows and what is wrong with the others, by number; a copy must read what scanning found."""
    sound, wrong = {}, {}
    copy = pickle.loads(pickle.dumps(table))
    for place, values in table.scan():
        if isinstance(values, ValueError):
            wrong[place.number] = str(values)
        else:
            assert table.read(place.key) == copy.read(place.key) == values
            sound[place.number] = values
    return sound, wrong


def csv_of(folder: Path, data: bytes, **options: Any) -> CSVTable:
    path = folder / "rows.csv"
    path.write_bytes(data)
    return CSVTable(path, **options)


QUIRKS = {
    "quoted line breaks and quotes": (
        b'text,label\n"two\nlines, ""quoted""",a\nplain,b\n',
        {2: {"text": 'two\nlines, "quoted"', "label": "a"}, 4: {"text": "plain", "label": "b"}},
    ),
    "mark and CRLF": (
        b"\xef\xbb\xbftext,label\r\none,a\r\ntwo,b\r\n",
        {2: {"text": "one", "label": "a"}, 3: {"text": "two", "label": "b"}},
    ),
    "empty lines, no last break": (
        b"text,label\n\none,a\n\n\ntwo,b",
        {3: {"text": "one", "label": "a"}, 6: {"text": "two", "label": "b"}},
    ),
    "empty values and spaces": (
        b" text , label\n,a\n x ,\n",
        {2: {"text": "", "label": "a"}, 3: {"text": " x ", "label": ""}},
    ),
    "beyond ASCII": (
        "text,label\nüber,你好\n🙂,b\n".encode(),
        {2: {"text": "über", "label": "你好"}, 3: {"text": "🙂", "label": "b"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "wanted"), QUIRKS.values(), ids=QUIRKS.keys())
def test_csv_quirks(tmp_path: Path, data: bytes, wanted: dict[int, dict[str, str]]) -> None:
    assert both(csv_of(tmp_path, data)) == (wanted, {})


def test_a_mark_inside_a_file_is_text(tmp_path: Path) -> None:
    sound, _ = both(csv_of(tmp_path, "text\na\n\ufeffb\n".encode()))
    assert sound[3] == {"text": "\ufeffb"}


def test_tabs_and_unquoted_quotes(tmp_path: Path) -> None:
    table = csv_of(tmp_path, b'text\tlabel\n"so, he said\ta\n', delimiter="\t", quoted=False)
    assert both(table) == ({2: {"text": '"so, he said', "label": "a"}}, {})


def test_a_value_longer_than_pythons_limit_is_read(tmp_path: Path) -> None:
    sound, wrong = both(csv_of(tmp_path, b"text,label\n" + b"x" * 200_000 + b",a\nshort,b\n"))
    assert [len(row["text"]) for row in sound.values()] == [200_000, 5]
    assert wrong == {}


def test_bad_rows_of_csv_say_their_line_and_the_rest_is_read(tmp_path: Path) -> None:
    data = b'text,label\none,a\nthree,values,here\nonly one\n\xe9t\xe9,a\n"x"y,a\nlast,b\n"never closed,a\n'
    sound, wrong = both(csv_of(tmp_path, data))
    assert sorted(sound) == [2, 7]
    assert wrong[3] == "the row has 3 values, and the first line names 2 columns"
    assert wrong[4] == "the row has 1 values, and the first line names 2 columns"
    assert wrong[5].startswith(f"offset {data.index(0xE9)}: byte 0xe9 is not UTF-8; if it is Latin-1, `iconv")
    assert "expected after" in wrong[6]
    assert wrong[8] == "unexpected end of data"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [(b"", "its first line is empty"), (b"a,b,a\n1,2,3\n", "has a name twice: a, b, a"), (b"\xff,b\n", "is no header")],
)
def test_a_csv_without_a_header_is_told(tmp_path: Path, data: bytes, wanted: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.csv: .*{wanted}"):
        list(csv_of(tmp_path, data).scan())


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": [1, {"b": null}]}\n{"a": 1\n[3]\n{"a": "\xff"}\n{"a": "last"}'
    path.write_bytes(data)
    sound, wrong = both(JSONTable(path))
    assert sound == {1: {"a": 1}, 3: {"a": [1, {"b": None}]}, 7: {"a": "last"}}
    assert wrong[4].startswith("column 8: not JSON")
    assert wrong[5] == "the line is a list, and an object is needed"
    assert wrong[6].startswith(f"offset {data.index(0xFF)}: byte 0xff is not UTF-8")


@pytest.mark.parametrize("kind", [CSVTable, JSONTable])
def test_gzip_is_refused(tmp_path: Path, kind: type[Any]) -> None:
    (tmp_path / "rows.gz").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"rows\.gz: rows are read in place, which gzip doesn't allow; unpack it: gunzip -k"
    ):
        kind(tmp_path / "rows.gz")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """2,000 rows in row groups of 100, with a column of lists."""
    rows = {"text": [f"row {n}" for n in range(2000)], "tags": [["a"] * (n % 3) for n in range(2000)]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet", row_group_size=100)
    return tmp_path / "rows.parquet"


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> RowGroups:
    """What this process keeps of Parquet files: nothing yet."""
    own = RowGroups()
    monkeypatch.setattr(tables, "GROUPS", own)
    return own


def test_parquet_rows_are_read_in_place_within_a_budget(
    parquet: Path, groups: RowGroups, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    table = ParquetTable(parquet)
    sound, wrong = both(table)
    assert wrong == {}
    assert sound[1234] == {"text": "row 1233", "tags": []}
    assert len(groups.groups) == 20
    each = next(iter(groups.groups.values())).nbytes
    monkeypatch.setattr(row_groups, "BYTES_KEPT", 3 * each)
    groups.forget()
    with caplog.at_level(logging.WARNING):
        for key in range(0, 2000, 37):
            assert table.read(key)["text"] == f"row {key}"
            assert 1 <= len(groups.groups) <= 4
            assert groups.bytes == sum(group.nbytes for group in groups.groups.values()) <= 3 * each
    assert "20 row groups: each row read in random order unpacks a whole row group" in caplog.text
    monkeypatch.setattr(row_groups, "BYTES_KEPT", 1)
    assert table.read(0)["text"] == "row 0"
    assert len(groups.groups) == 1


def test_many_parquet_files_share_one_budget(
    tmp_path: Path, groups: RowGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = []
    for number in range(12):
        rows = pa.table({"text": [f"{number} {n} {'x' * 200}" for n in range(100)]})
        pq.write_table(rows, tmp_path / f"{number}.parquet", row_group_size=50)
        shards.append(ParquetTable(tmp_path / f"{number}.parquet"))
    monkeypatch.setattr(row_groups, "BYTES_KEPT", 60_000)
    monkeypatch.setattr(row_groups, "FILES_KEPT", 3)
    draw = np.random.default_rng(0)
    for _ in range(300):
        shard, key = int(draw.integers(12)), int(draw.integers(100))
        assert shards[shard].read(key)["text"].startswith(f"{shard} {key} x")
        assert groups.bytes <= 60_000
        assert len(groups.files) <= 3
    with ThreadPoolExecutor(4) as threads:
        asked = [(int(draw.integers(12)), int(draw.integers(100))) for _ in range(400)]
        found = list(threads.map(lambda one: shards[one[0]].read(one[1])["text"], asked))
    assert all(text.startswith(f"{shard} {key} x") for text, (shard, key) in zip(found, asked, strict=True))


def test_a_bad_text_of_parquet_is_one_bad_row(tmp_path: Path) -> None:
    column = pa.array([b"good", b"\xff\xfe", b"well"]).cast(pa.binary())
    texts = pa.StringArray.from_buffers(3, column.buffers()[1], column.buffers()[2])
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    sound, wrong = both(ParquetTable(tmp_path / "rows.parquet"))
    assert sound == {1: {"text": "good"}, 3: {"text": "well"}}
    assert wrong == {2: "a text is not UTF-8: byte 0xff"}


def test_a_damaged_parquet_file_is_told(parquet: Path) -> None:
    parquet.write_bytes(parquet.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows\.parquet: not a readable Parquet file"):
        list(ParquetTable(parquet).scan())


def test_a_file_that_changed_is_not_read(tmp_path: Path, parquet: Path) -> None:
    csv, rows = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    csv.write_text("text\nold\n")
    rows.write_text('{"text": "old"}\n')
    for table in (CSVTable(csv), JSONTable(rows), ParquetTable(parquet)):
        place, values = next(iter(table.scan()))
        assert table.read(place.key) == values
        os.utime(table.file, (1, 1))
        with pytest.raises(ValueError, match="the file has changed"):
            table.read(place.key)


def test_rows_in_memory_are_copies() -> None:
    table = ListTable("three", [{"n": n} for n in range(3)])
    assert both(table) == ({1: {"n": 0}, 2: {"n": 1}, 3: {"n": 2}}, {})
    table.read(0)["n"] = 9
    assert table.read(0) == {"n": 0}
