"""Where documents come from: text, JSONL and Parquet files, from local paths, folders or globs.

A source yields its documents in a fixed order, each marked as train or validation (see splits.py), and says exactly
which file, line and byte is wrong.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlplatform.data.fields import Words
from mlplatform.data.files import check_apart, find, fingerprint, lines, text_blocks
from mlplatform.data.splits import is_validation
from mlplatform.data.tables import json_object
from mlplatform.errors import DataError, SpecError, did_you_mean, listing
from mlplatform.registry import Fraction, Text, block

MARGIN = 4096
"""Characters within which a document separator must end, its look-ahead counted."""


class Document(NamedTuple):
    """One document and which split it belongs to."""

    text: str
    validation: bool


class Source:
    """Files of documents. Subclasses read one file.

    Args:
        path: a file, a folder, a glob or a list of them; `shipped:NAME` for a text that comes with the project.
        validation: the share of documents held out, chosen by a hash of each document's text; or the path of files
            that hold the validation documents; 0 for none.
    """

    suffixes: tuple[str, ...] = ()

    def __init__(self, path: str | list[str], validation: float | str | list[str], options: dict[str, Any]) -> None:
        self.files = find(path, self.suffixes, "data.path")
        share = float(validation) if isinstance(validation, (int, float)) else 0.0
        held_out = [] if isinstance(validation, (int, float)) else find(validation, self.suffixes, "data.validation")
        self.validation_files = held_out
        check_apart({"train": self.files, "validation": held_out})
        self._set(share, options)

    def _set(self, share: float, options: dict[str, Any]) -> None:
        """Set what all sources have, whatever they read.

        Args:
            share: of the documents to train on, held out. options: what decides which documents there are.
        """
        self.share = share
        self.options = {"kind": type(self).__name__, "share": self.share, **options}
        self.skipped: Counter[str] = Counter()
        """Bad rows left out by the last full reading, by file."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        first = self.files[0].name
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more"

    def fingerprint(self) -> str:
        """Return a hash of all bytes that are read and of the options that decide what the documents are."""
        parts = [json.dumps(self.options, sort_keys=True), *self.contents()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def contents(self) -> list[str]:
        """Return hashes of all bytes that are read."""
        files = [fingerprint(file) for file in self.files]
        return [*files, "validation", *(fingerprint(file) for file in self.validation_files)]

    def streams(self) -> Iterator[tuple[bool, Iterator[str]]]:
        """Yield (held out, its documents) of everything that is read, in order."""
        for held_out, files in ((False, self.files), (True, self.validation_files)):
            yield from ((held_out, self._read(file)) for file in files)

    def documents(self) -> Iterator[Document]:
        """Yield every document in order.

        Raises:
            DataError: a file can't be read, or (at the end) one of the splits got no document.
        """
        self.skipped.clear()
        count: Counter[bool] = Counter()
        for held_out, texts in self.streams():
            for text in texts:
                document = Document(text, held_out or is_validation(text, self.share))
                count[document.validation] += 1
                yield document
        self._check_splits(train=count[False], validation=count[True])

    def _check_splits(self, train: int, validation: int) -> None:
        if train and (validation or not self.share):
            return
        empty, other = ("validation", train) if train else ("train", validation)
        told = (
            f"{self.name}: the {empty} split is empty: data.validation={self.share} of {other} document(s) left it none"
        )
        enough = math.ceil(3 / min(self.share, 1 - self.share)) if self.share else 1
        some = f"give about {enough} documents or more (data.document_separator cuts a text into documents)"
        raise DataError(f"{told}; {some}, or the path of a validation file, or data.validation=0")

    def train_texts(self) -> Iterator[str]:
        """Yield the texts of the train split in order."""
        return (document.text for document in self.documents() if not document.validation)

    def _read(self, file: Path) -> Iterator[str]:
        found = False
        for text in self.texts(file):
            found = True
            yield text
        if not found:
            left = f"; all {n} rows are bad and were left out" if (n := self.skipped[str(file)]) else ""
            raise DataError(f"{file}: there is no document in it{left}")

    def texts(self, file: Path) -> Iterator[str]:
        """Yield the documents of one file."""
        raise NotImplementedError


@block("data/text")
class TextFiles(Source):
    """UTF-8 text files, plain or gzipped.

    Args:
        path: a file, a folder, a glob or a list of them; `shipped:NAME` for a text that comes with the project.
        document_separator: a regular expression (Python's) that stands between two documents and belongs to neither;
            null takes each file as one document. It must match within 4096 characters.
        validation: the share of documents held out by a hash of their text, or the path of files to validate on.
    """

    suffixes = (".txt", ".txt.gz", ".md", ".text")

    def __init__(
        self,
        *,
        path: Text | list[Text],
        document_separator: Text | None = None,
        validation: Fraction | Text | list[Text] = 0.1,
    ) -> None:
        try:
            self.separator = re.compile(document_separator) if document_separator else None
        except re.error as error:
            raise SpecError(f"document_separator={document_separator!r} is no regular expression: {error}") from None
        super().__init__(path, validation, {"document_separator": document_separator})

    def texts(self, file: Path) -> Iterator[str]:
        """Yield the documents of one file. Memory: one document and one block."""
        return (text for text in self._cut(text_blocks(file)) if not text.isspace())

    def _cut(self, blocks: Iterator[str]) -> Iterator[str]:
        """Split a stream at the separator; where the blocks end makes no difference."""
        if self.separator is None:
            yield "".join(blocks)
            return
        buffer, start, searched = "", 0, 0  # the document being read starts at `start`, no separator before `searched`
        for part in blocks:
            buffer += part
            for found in self.separator.finditer(buffer, searched):
                if found.end() > len(buffer) - MARGIN:
                    break  # what follows may change this match: look again when it is here
                if found.start() > start:
                    yield buffer[start : found.start()]
                start = searched = found.end()
            searched = max(searched, len(buffer) - 2 * MARGIN)
            kept = max(0, start - MARGIN)  # so that a look-behind sees what it would see in the whole text
            buffer, start, searched = buffer[kept:], start - kept, searched - kept
        for found in self.separator.finditer(buffer, searched):
            if found.start() > start:
                yield buffer[start : found.start()]
            start = found.end()
        if buffer[start:]:
            yield buffer[start:]


class Rows(Source):
    """Files of rows with a text in one field; a bad row is an error or is left out and counted."""

    def __init__(
        self,
        path: str | list[str],
        validation: float | str | list[str],
        field: str,
        on_bad_row: Literal["error", "skip"],
    ) -> None:
        super().__init__(path, validation, {"field": field, "on_bad_row": on_bad_row})

    def _set(self, share: float, options: dict[str, Any]) -> None:
        self.field, self.skip = options["field"], options["on_bad_row"] == "skip"
        super()._set(share, options)

    def _text(self, value: Any) -> str:
        """Return the text of a row. Raises ValueError saying what is wrong with it."""
        try:
            return Words().clean(value, Path())
        except ValueError as error:
            raise ValueError(f"field '{self.field}' {error}") from None

    def _bad(self, file: Path | str, where: str, why: object) -> None:
        """Count a bad row, or raise DataError that says where it is."""
        if not self.skip:
            raise DataError(f"{file}: {where}: {why}; mend it, or leave bad rows out with data.on_bad_row=skip")
        self.skipped[str(file)] += 1


@block("data/jsonl")
class JSONLines(Rows):
    """JSON Lines files, plain or gzipped: one object a line, one document an object.

    Args:
        path: a file, a folder, a glob or a list of them.
        field: the key of the text.
        validation: the share of documents held out by a hash of their text, or the path of files to validate on.
        on_bad_row: what a row without a usable text does: stop with its line, or be left out and counted.
    """

    suffixes = (".jsonl", ".jsonl.gz", ".ndjson")

    def __init__(
        self,
        *,
        path: Text | list[Text],
        field: Text = "text",
        validation: Fraction | Text | list[Text] = 0.1,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__(path, validation, field, on_bad_row)

    def texts(self, file: Path) -> Iterator[str]:
        """Yield the documents of one file, a line at a time."""
        for number, offset, line in lines(file):
            try:
                yield self._text(self._value(line, offset))
            except ValueError as error:
                self._bad(file, f"line {number}", error)

    def _value(self, line: bytes, offset: int) -> Any:
        row = json_object(line, offset)
        if self.field not in row:
            near = did_you_mean(self.field, row)
            raise ValueError(f"no field '{self.field}'{near}; it has {listing(row)} (data.field names the text)")
        return row[self.field]


@block("data/parquet")
class Parquet(Rows):
    """Parquet files with a text column: one document a row.

    Args:
        path: a file, a folder, a glob or a list of them.
        field: the column of the text.
        validation: the share of documents held out by a hash of their text, or the path of files to validate on.
        on_bad_row: what a row without a usable text does: stop with its number, or be left out and counted.
    """

    suffixes = (".parquet",)

    def __init__(
        self,
        *,
        path: Text | list[Text],
        field: Text = "text",
        validation: Fraction | Text | list[Text] = 0.1,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__(path, validation, field, on_bad_row)

    def texts(self, file: Path) -> Iterator[str]:
        """Yield the documents of one file, a batch of rows at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file) as table:
                self._check_column(file, table.schema_arrow)
                number = 0
                for batch in table.iter_batches(batch_size=1024, columns=[self.field]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        try:
                            yield self._text(value)
                        except ValueError as error:
                            self._bad(file, f"row {number}", error)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}") from None

    def _check_column(self, file: Path, schema: Any) -> None:
        if self.field not in schema.names:
            near = did_you_mean(self.field, schema.names)
            raise DataError(f"{file}: no column '{self.field}'{near}; it has {listing(schema.names)} (see data.field)")
        held = str(schema.field(self.field).type)
        if held not in ("string", "large_string", "string_view"):
            raise DataError(f"{file}: column '{self.field}' is of type {held}, and a text is needed (see data.field)")
