"""Rows of files, read in place: nothing but where each row starts is kept in memory or in the cache.

A table is read twice over: `scan` goes through all its rows once and says where each is; `read` gives one of them
again. Tables hold no open file, so they can be handed to worker processes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlplatform.data.fields import named
from mlplatform.data.files import lines, not_utf8
from mlplatform.data.row_groups import GROUPS
from mlplatform.errors import DataError

BUFFER = 1 << 20
"""Bytes read at a time of a column of a Parquet file."""
LONGEST_VALUE = 1 << 28
csv.field_size_limit(LONGEST_VALUE)  # Python's own is 128 KiB, less than a long document


class Place(NamedTuple):
    """Where a row is: what `read` finds it by, and its number as people count."""

    key: int
    number: int


class Table(Protocol):
    """The rows of one file, or of one split of a data set."""

    name: str
    """What to call it in messages."""
    folder: Path
    """Where paths in its rows start from."""
    counted: str
    """What its numbers count: `line` or `row`."""

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        """Yield every row with its place, or what is wrong with it. Raises DataError for a file that is unreadable."""
        ...

    def read(self, key: int) -> dict[str, Any]:
        """Return one row again."""
        ...


class _File:
    counted = "line"

    def __init__(self, file: Path) -> None:
        if file.suffix == ".gz":
            raise DataError(f"{file}: rows are read in place, which gzip doesn't allow; unpack it: gunzip -k {file}")
        self.file, self.folder, self.name = file, file.parent, str(file)
        self.stamp = stamp(file)

    def _opened(self) -> io.BufferedReader:
        file = self.file.open("rb")
        if stamp(file.fileno()) != self.stamp:
            file.close()
            raise ValueError(CHANGED)
        return file


CHANGED = "the file has changed"


def stamp(file: Path | int) -> tuple[int, int]:
    """Return what tells a file from its changed self: its size and when it was written."""
    state = os.stat(file)  # noqa: PTH116  (also of an open file)
    return state.st_size, state.st_mtime_ns


class JSONTable(_File):
    """JSON Lines: one object a line, found by its byte."""

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        for number, offset, line in lines(self.file):
            try:
                yield Place(offset, number), json_object(line, offset)
            except ValueError as error:
                yield Place(offset, number), error

    def read(self, key: int) -> dict[str, Any]:
        with self._opened() as file:
            file.seek(key)
            return json_object(file.readline(), key)


class CSVTable(_File):
    """Values between commas or another sign, with the columns' names in the first line; a quoted value may have several
    lines. A row is found by its byte.

    Raises:
        DataError: there is no header, or a name stands in it twice.
    """

    def __init__(self, file: Path, delimiter: str = ",", quoted: bool = True) -> None:
        super().__init__(file)
        self.quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        self.delimiter = delimiter
        self.columns: list[str] = []

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        with self.file.open("rb") as file:
            source = _Lines(file)
            reader = self._reader(source)
            self.columns = self._header(reader)
            while True:
                place = Place(file.tell(), source.number + 1)
                try:
                    values = next(reader)
                    if values:  # an empty line is none
                        yield place, self._row(values)
                except StopIteration:
                    return
                except UnicodeDecodeError as error:
                    told = not_utf8(error.object[error.start], file.tell() - len(error.object) + error.start)
                    yield place, ValueError(told)
                except (csv.Error, ValueError) as error:
                    yield place, ValueError(str(error))

    def read(self, key: int) -> dict[str, Any]:
        with self._opened() as file:
            if not self.columns:
                self.columns = self._header(self._reader(_Lines(file)))
            file.seek(key)
            for values in self._reader(_Lines(file)):
                return self._row(values)
        raise ValueError(CHANGED)

    def _reader(self, lines: _Lines) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self.delimiter, quoting=self.quoting, strict=True)

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            columns = [name.strip() for name in next(reader, [])]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{self.file}: its first line is no header: {error}") from None
        if not any(columns) or len(set(columns)) < len(columns):
            told = f"has a name twice: {', '.join(columns)}" if any(columns) else "is empty"
            raise DataError(f"{self.file}: its first line {told}; it names the columns")
        return columns

    def _row(self, values: list[str]) -> dict[str, Any]:
        if len(values) != len(self.columns):
            raise ValueError(f"the row has {len(values)} values, and the first line names {len(self.columns)} columns")
        return dict(zip(self.columns, values, strict=True))


class _Lines:
    """The lines of an open file as texts, counted."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file, self.number = file, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if not (line := self.file.readline()):
            raise StopIteration
        self.number += 1
        return line.decode("utf-8-sig" if self.file.tell() == len(line) else "utf-8")


class ParquetTable:
    """A Parquet file: a row group is read when one of its rows is asked for (row_groups.py)."""

    counted = "row"

    def __init__(self, file: Path) -> None:
        self.file, self.folder, self.name, self.stamp = file, file.parent, str(file), stamp(file)

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        for number, values in enumerate(parquet_rows(self.file)):
            yield Place(number, number + 1), values

    def read(self, key: int) -> dict[str, Any]:
        if stamp(self.file) != self.stamp:
            raise ValueError(CHANGED)
        return GROUPS.row((self.file, self.stamp), key)


class ListTable:
    """Rows that are in memory: small data sets that come with a package."""

    counted = "row"

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]], folder: Path = Path()) -> None:
        self.name, self.rows, self.folder = name, rows, folder

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        for number in range(len(self.rows)):
            yield Place(number, number + 1), dict(self.rows[number])

    def read(self, key: int) -> dict[str, Any]:
        return dict(self.rows[key])


def json_object(line: bytes, offset: int) -> dict[str, Any]:
    """Return the object on a line of a JSON Lines file. Raises ValueError that says what is wrong and where."""
    try:
        row = json.loads(line.rstrip(b"\r\n").decode())  # without the break, so that an error counts its columns
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(line[error.start], offset + error.start)) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(row, dict):
        raise ValueError(f"the line is {named(row)}, and an object is needed")
    return row


def parquet_rows(file: Path) -> Iterator[dict[str, Any] | ValueError]:
    """Yield the rows of a Parquet file, some at a time. Raises DataError when it can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, buffer_size=BUFFER) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from _rows(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}") from None


def _rows(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield ValueError(f"a text is not UTF-8: byte 0x{error.object[error.start]:02x}")
            return
        for number in range(len(batch)):
            yield from _rows(batch.slice(number, 1))
