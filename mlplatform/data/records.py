"""Records: examples of one row each, such as a text and its label, or an image and what is on it.

A source of records goes once through all its rows. What a bad row is, which split a row belongs to, where it starts
and which classes there are is kept in the cache; from then on any row of any split is read in its place when it is
asked for. The files of a split in the cache:

    <split>.rows   int64 (rows, 3): the number of the table, where the row starts there, its number as people count
    manifest.json  rows of each split, bad rows by file, rows the steps left out, how often each class stands in a split
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from mlplatform.cached import cached_folder, wrong_size
from mlplatform.data.fields import BadFile, Field, Values, is_file
from mlplatform.data.splits import drawn
from mlplatform.data.steps import Step
from mlplatform.data.tables import Place, Table, stamp
from mlplatform.errors import DataError, did_you_mean, listing

FORMAT = 2
SPLITS = ("train", "validation", "test")
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Record:
    """One row: what the task reads of it, all its columns after the steps, and where it is."""

    values: Values
    columns: Values
    place: str

    def __getitem__(self, name: str) -> Any:
        """Return a field the task reads."""
        return self.values[name]

    def get(self, name: str) -> Any:
        """Return a field the task may read, or None when the row has none."""
        return self.values.get(name)


@dataclass(frozen=True)
class Reads:
    """What a task reads of a row.

    Args:
        fields: each field by its name. `optional` ones may be missing or null.
        check: raises ValueError when fields of a row don't fit each other. A function of a module, so that workers
            and the cache can name it, or an object whose `key` tells the cache all it goes by.
    """

    fields: Mapping[str, Field]
    optional: frozenset[str] = frozenset()
    check: Callable[[Values], None] | None = None

    @property
    def key(self) -> str:
        """Names all that decides which rows are bad and what their classes are."""
        parts = {name: [field.name, name in self.optional] for name, field in self.fields.items()}
        check = getattr(self.check, "key", None) or getattr(self.check, "__qualname__", None)
        return json.dumps([parts, check], sort_keys=True)

    @property
    def texts(self) -> list[str]:
        """The fields a tokenizer is trained on."""
        return [name for name, field in self.fields.items() if field.text]


@dataclass(frozen=True)
class Shaping:
    """From a row of a file to a record: the steps, which column is which field, and the fields' own rules.

    Args:
        columns: field -> column; a field that isn't there has its own name.
        classes: the names there are, where the user listed them.
    """

    reads: Reads
    steps: Sequence[Step] = ()
    columns: Mapping[str, str] | None = None
    classes: tuple[str, ...] | None = None

    def record(self, values: Values, folder: Path, place: str) -> Record | None:
        """Return a row as a record, None when a step leaves it out. Raises ValueError that says what is wrong."""
        for step in self.steps:
            changed = step(values)
            if changed is None:
                return None
            values = changed
        found = {name: self._value(name, field, values, folder) for name, field in self.reads.fields.items()}
        kept = {name: value for name, value in found.items() if value is not None or name not in self.reads.optional}
        if self.reads.check is not None:
            self.reads.check(kept)
        return Record(kept, values, place)

    def _value(self, name: str, field: Field, values: Values, folder: Path) -> Any:
        column = (self.columns or {}).get(name, name)
        if values.get(column) is None and name in self.reads.optional:
            return None
        if column not in values:
            near = did_you_mean(column, values)
            raise ValueError(f"no column '{column}'{near}; it has {listing(values)} (data.fields names the columns)")
        try:
            value = field.clean(values[column], folder)
            if self.classes is not None:
                self._check_classes(field.classes(value))
        except ValueError as error:
            error.args = (f"'{column}' {error}",)
            raise
        return value

    def _check_classes(self, found: list[str]) -> None:
        for one in found:
            if one not in (self.classes or ()):
                raise ValueError(f"is '{one}', and the classes are {listing(self.classes or ())} (data.classes)")


class Numbered(Sequence[Record]):
    """A sequence of records whose subclasses say only how long it is, and give the one of a number."""

    def at(self, number: int) -> Record:
        """Return one record."""
        raise NotImplementedError

    @overload
    def __getitem__(self, number: int) -> Record: ...
    @overload
    def __getitem__(self, number: slice) -> list[Record]: ...
    def __getitem__(self, number: int | slice) -> Record | list[Record]:
        return [self.at(i) for i in range(*number.indices(len(self)))] if isinstance(number, slice) else self.at(number)


class Records(Numbered):
    """One split, read in place. It can be handed to worker processes."""

    def __init__(self, tables: Sequence[Table], rows: Path | None, shaping: Shaping) -> None:
        self.tables, self.path, self.shaping = tables, rows, shaping

    @cached_property
    def rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(rows, 3): table, where in it, number."""
        if self.path is None or self.path.stat().st_size == 0:
            return np.empty((0, 3), np.int64)
        return np.memmap(self.path, dtype=np.int64, mode="r").reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, number: int) -> Record:
        """Return a record. Raises DataError when its file changed under the run."""
        where, key, counted = (int(part) for part in self.rows[number])
        table = self.tables[where]
        place = named_place(table, counted)
        try:
            record = self.shaping.record(table.read(key), table.folder, place)
        except (ValueError, OSError) as error:
            raise DataError(f"{place}: {error}; it was sound when the run began") from None
        if record is None:
            raise DataError(f"{place}: the steps leave this row out; they did not when the run began")
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self.tables, self.path, self.shaping)  # a worker maps the file itself


@dataclass(frozen=True)
class Splits:
    """The records of a source, by split, and what is known of them all."""

    splits: Mapping[str, Numbered]
    classes: Mapping[str, tuple[str, ...]]
    """The names of the classes, for each field that holds some, in the order of their numbers."""
    skipped: Mapping[str, int]
    """Bad rows left out, by file."""
    filtered: int
    """Rows the steps left out."""
    content: str
    """A hash of all the data's bytes and of the options that decide what the records are."""
    reads: Reads
    """What the task reads of them."""
    untrained: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    """The classes no record to train on has, by field; only where bad rows are left out."""

    def fingerprint(self) -> str:
        """Return a hash of the texts a tokenizer is trained on."""
        return hashlib.sha256(f"{self.content} {tuple(self.reads.texts)}".encode()).hexdigest()

    def train_texts(self) -> Iterator[str]:
        """Yield the texts of the train split in order: what a tokenizer is trained on."""
        for record in self.splits["train"]:
            for name in self.reads.texts:
                yield from self.reads.fields[name].texts(record.get(name))


class RecordSource:
    """What all sources of records share. Subclasses name their tables.

    Args:
        validation: the share of the train tables' records held out by a hash of their content; 0 for none.
        test: the same for the test split.
        fields: field of the task -> column of the files, where they differ.
        steps: changes of rows, in order.
        classes: the names of the classes, in the order of their numbers; None takes those of the train split, sorted.
        skip: leave bad rows out and count them; otherwise the first one is an error.
        options: all else that decides what the records are, for the cache.
    """

    name: str = ""
    """What to call it in messages."""

    def __init__(
        self,
        *,
        validation: float,
        test: float,
        fields: Mapping[str, str],
        steps: Sequence[Any],
        classes: Sequence[str] | None,
        skip: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.shares = {"validation": validation, "test": test}
        if validation + test >= 1:
            raise DataError(f"data.validation={validation} and data.test={test} leave nothing to train on")
        self.fields, self.classes, self.skip = dict(fields), tuple(classes) if classes else None, skip
        self.steps: list[Step] = [step.build() for step in steps]
        said = {"fields": self.fields, "steps": [step.data for step in steps], "classes": self.classes, "skip": skip}
        self.options = {"kind": type(self).__name__, "shares": self.shares, **said, **options}

    def tables(self) -> dict[str, list[Table]]:
        """Return the tables of each split; those of `train` are divided by the shares."""
        raise NotImplementedError

    def content(self) -> str:
        """Return a hash of all the bytes the tables are made of."""
        raise NotImplementedError

    def known_classes(self) -> dict[str, tuple[str, ...]]:
        """Return the classes the files themselves name in order, by column."""
        return {}

    def fingerprint(self) -> str:
        """Return a hash of the content and of the options that decide what the records are."""
        return hashlib.sha256(f"{json.dumps(self.options, sort_keys=True)}\n{self.content()}".encode()).hexdigest()

    def open(self, reads: Reads) -> Splits:
        """Go through all rows once, or find in the cache what that found, and return the splits.

        Raises:
            DataError: a file can't be read, a row is bad (its file and number are named), a split is empty, or a class
                has no record to learn from.
        """
        if strange := [name for name in self.fields if name not in reads.fields]:
            near = did_you_mean(strange[0], reads.fields)
            told = f"the task reads no field '{strange[0]}'{near}; it reads {listing(reads.fields)}"
            raise DataError(f"data.fields: {told} (a field stands before its column: {{text: review}})")
        tables, fingerprint = self.tables(), self.fingerprint()
        key = hashlib.sha256(f"records {FORMAT} {fingerprint} {reads.key}".encode()).hexdigest()[:32]
        shaping = Shaping(reads, self.steps, self.fields, self.classes)

        def build(folder: Path) -> None:
            Scan(self, tables, shaping).write(folder)
            if self.fingerprint() != fingerprint:
                raise DataError(f"{self.name}: the data changed while it was read; start again when it is at rest")

        folder = cached_folder("records", key, build, _damage, f"rows of {self.name}")
        told = _manifest(folder)
        every = [table for split in SPLITS for table in tables.get(split, [])]
        splits = {name: Records(every, folder / f"{name}.rows", shaping) for name in SPLITS}
        classes = self._classes(reads, told)
        untrained = self._untrained(classes, told)
        return Splits(splits, classes, told["skipped"], told["filtered"], fingerprint, reads, untrained)

    def _classes(self, reads: Reads, told: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Return the classes of each field, in the order of their numbers."""
        found: dict[str, tuple[str, ...]] = {}
        for field, counts in told["classes"].items():
            known = self.classes or self.known_classes().get(str(self.fields.get(field, field)))
            found[field] = known or tuple(in_order(list({name for split in counts.values() for name in split})))
        return found

    def _untrained(self, classes: Mapping[str, tuple[str, ...]], told: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the classes no record to train on has: an error unless bad rows are left out."""
        found: dict[str, list[str]] = {}
        for field, names in classes.items():
            counts = told["classes"][field]
            missing = [name for name in names if name not in counts["train"]]
            if missing and not self.skip:
                held_out = [split for split in SPLITS if missing[0] in counts[split]]
                where = f", only one of the {held_out[0]} split" if held_out else ""
                more = f" ({len(missing)} such classes)" if len(missing) > 1 else ""
                told_of = f"no record to train on has '{missing[0]}' as {field}{where}{more}"
                rest = "" if held_out else ", take it out of data.classes"
                fix = f"give records of it{rest}, or go on without by data.on_bad_row=skip"
                raise DataError(f"{self.name}: {told_of}; {fix}")
            if missing:
                found[field] = missing
        return found


class Scan:
    """One pass over all rows of a source."""

    def __init__(self, source: RecordSource, tables: Mapping[str, list[Table]], shaping: Shaping) -> None:
        self.source, self.tables, self.shaping = source, tables, shaping
        self.rows: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
        self.skipped: Counter[str] = Counter()
        self.broken: dict[str, list[int] | None] = {}
        """The files for whose sake rows were left out, as they were."""
        self.filtered = 0
        fields = shaping.reads.fields
        self.classes: dict[str, dict[str, Counter[str]]] = {
            name: {split: Counter() for split in SPLITS} for name in fields if fields[name].holds_classes
        }

    def write(self, folder: Path) -> None:
        """Write a split's rows and the manifest into a folder."""
        files = {split: (folder / f"{split}.rows").open("wb") for split in SPLITS}
        try:
            number = 0
            for split in SPLITS:
                for table in self.tables.get(split, []):
                    for place, record, drawn_split in self._sound(table):
                        chosen = drawn_split if split == "train" else split
                        files[chosen].write(np.asarray([number, *place], np.int64).tobytes())
                        self._count(record, chosen)
                    number += 1
        finally:
            for file in files.values():
                file.close()
        self._check_splits()
        told = {
            "rows": dict(self.rows),
            "skipped": dict(self.skipped),
            "filtered": self.filtered,
            "broken": self.broken,
            "classes": self.classes,
            "sizes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        }
        (folder / "manifest.json").write_text(json.dumps(told, ensure_ascii=False))

    def _sound(self, table: Table) -> Iterator[tuple[Place, Record, str]]:
        """Yield the records of a table and the split each draws; bad rows are left out, or the first is an error."""
        for place, values in table.scan():
            where = named_place(table, place.number)
            try:
                if isinstance(values, ValueError):
                    raise values
                record = self.shaping.record(values, table.folder, where)
                if record is None:
                    self.filtered += 1
                    continue
                for name, value in record.values.items():
                    self.shaping.reads.fields[name].verify(value)
                chosen = self._split(record)
            except ValueError as error:
                if not self.source.skip:
                    told = f"{where}: {error}; mend it, or leave bad rows out with data.on_bad_row=skip"
                    raise DataError(told) from None
                self.skipped[table.name] += 1
                if isinstance(error, BadFile):
                    self.broken[str(error.path)] = _stamp(error.path)
                continue
            yield place, record, chosen

    def _split(self, record: Record) -> str:
        fields = self.shaping.reads.fields
        digest = hashlib.sha256()
        for name in sorted(record.values):
            digest.update(name.encode() + b"\0" + fields[name].content(record.values[name]) + b"\0")
        share, shares = drawn(digest.digest()), self.source.shares
        if share < shares["validation"]:
            return "validation"
        return "test" if share < shares["validation"] + shares["test"] else "train"

    def _count(self, record: Record, split: str) -> None:
        self.rows[split] += 1
        for name, counts in self.classes.items():
            if name in record.values:
                counts[split].update(self.shaping.reads.fields[name].classes(record.values[name]))
                if len(counts[split]) > MOST_CLASSES:
                    told = f"{record.place}: '{name}' has more than {MOST_CLASSES} values so far"
                    raise DataError(f"{told}, so it is no class; name another column in data.fields")

    def _check_splits(self) -> None:
        asked = {"train", *(name for name, share in self.source.shares.items() if share)}
        asked |= {name for name, tables in self.tables.items() if tables}
        total = sum(self.rows.values())
        for split in SPLITS:
            if split in asked and not self.rows[split]:
                left = sum(self.skipped.values())
                why = (
                    f" ({left} bad rows and {self.filtered} by the steps were left out)" if left + self.filtered else ""
                )
                told = f"the {split} split is empty: {total} records in all{why}"
                some = "give more records" if split == "train" else f"give more records, or set data.{split}=0"
                raise DataError(f"{self.source.name}: {told}; {some}")


def named_place(table: Table, number: int) -> str:
    """Return where a row is, for messages: `reviews.csv: line 12`."""
    return f"{table.name}: {table.counted} {number}"


def in_order(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return names sorted; whole numbers by their size."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def _damage(folder: Path) -> str | None:
    """Say why a folder of the cache can't be used: a file is missing, cut short or too long, or a row was mended."""
    try:
        told = _manifest(folder)
        sizes, broken = told["sizes"], told["broken"]
    except (OSError, ValueError, KeyError) as error:
        return f"manifest.json: {error}"
    if wrong := wrong_size(folder, sizes):
        return wrong
    mended = (path for path, before in broken.items() if _stamp(Path(path)) != before)
    return next((f"{path}, for whose sake a row was left out, has changed" for path in mended), None)


def _stamp(path: Path) -> list[int] | None:
    return list(stamp(path)) if is_file(path) else None
