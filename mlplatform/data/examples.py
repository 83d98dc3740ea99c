"""From a record to the rows of a batch: what a task of records says, and the rows made by it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mlplatform.cached import cached_folder, wrong_size
from mlplatform.data.collate import Batch, Row
from mlplatform.data.packing import IGNORED, Arrays
from mlplatform.data.records import Numbered, Record
from mlplatform.errors import DataError


@dataclass(frozen=True)
class Tools:
    """What a task makes rows with. What the run has none of is None.

    Args:
        tokenizer: of the run. processor: what prepares images or sound.
        length: tokens of a row, at most (`batch.length`).
        classes: the names of the classes in the order of their numbers, by field.
    """

    tokenizer: Any = None
    processor: Any = None
    length: int = 256
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def need(self, what: str, task: str) -> Any:
        """Return the `tokenizer` or the `processor`. Raises DataError where the run has none."""
        if (found := getattr(self, what)) is None:
            choose = "tokenizer=bpe" if what == "tokenizer" else "processor=image or processor=audio"
            raise DataError(f"task={task} needs a {what}, and the run has none; choose one, such as {choose}")
        return found

    def numbers(self, name: str) -> dict[str, int]:
        """Return class -> number of a field."""
        return {label: number for number, label in enumerate(self.classes[name])}


class Examples(Protocol):
    """Makes rows of records and batches of rows. It goes to worker processes, so it holds no model and no open file."""

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        """Return the arrays of one row.

        Args:
            random: what augmentation draws from, the same for (seed, epoch, record) whatever the workers; None where
                nothing is to be changed: in validation.

        Raises:
            DataError: the record can't be used; `record.place` says where it is.
        """
        ...

    def __call__(self, rows: list[Row]) -> Batch:
        """Return a micro-batch. `stacked` does it where rows need no more than padding."""
        ...


class Windows(Examples, Protocol):
    """Examples that make several rows of a record: of a text longer than a row, for one."""

    def parts(self, record: Record) -> int:
        """Return how many rows a record makes, one at least."""
        ...

    def part(self, record: Record, number: int, random: np.random.Generator | None) -> Arrays:
        """Return one of them, numbered from 0."""
        ...


class RecordRows(Numbered):
    """A split of records as numbered rows, the same in every epoch. As a sequence: the record each row is made of.

    Args:
        training: whether rows are changed at random, where the examples do so.
        content: a hash of what the records are, for what is kept about their rows.
    """

    def __init__(self, records: Sequence[Record], examples: Examples, training: bool, content: str = "") -> None:
        self.records, self.examples, self.training, self.content = records, examples, training, content

    @cached_property
    def ends(self) -> NDArray[np.int64] | None:
        """The number of rows up to the end of each record; None where each makes one."""
        if not hasattr(self.examples, "parts"):
            return None
        examples = cast(Windows, self.examples)
        return np.cumsum([examples.parts(record) for record in self.records], dtype=np.int64)

    def __len__(self) -> int:
        if self.ends is None:
            return len(self.records)
        return int(self.ends[-1]) if len(self.ends) else 0

    def at(self, number: int) -> Record:
        return self.records[self.place(number)[0]]

    @classmethod
    def none(cls) -> RecordRows:
        """Return no rows."""
        return cls((), cast(Examples, None), training=False)

    def first(self, record: int) -> int:
        """Return the number of the first row of a record."""
        return record if self.ends is None else int(self.ends[record - 1]) if record else 0

    def place(self, number: int) -> tuple[int, int]:
        """Return which record a row is made of, and which of its parts it is."""
        if self.ends is None:
            return number, 0
        record = int(np.searchsorted(self.ends, number, side="right"))
        return record, number - (int(self.ends[record - 1]) if record else 0)

    def plain(self) -> RecordRows:
        """Return the same rows as a held-out split has them: nothing is changed at random."""
        rows = RecordRows(self.records, self.examples, training=False, content=self.content)
        rows.__dict__.update({name: value for name, value in self.__dict__.items() if name == "ends"})
        return rows

    def row(self, number: int, seed: int, epoch: int) -> Arrays:
        """Return one row."""
        random = np.random.default_rng((seed, epoch, number + 1, 1)) if self.training else None
        record, part = self.place(number)
        if self.ends is None:
            return self.examples.row(self.records[record], random)
        return cast(Windows, self.examples).part(self.records[record], part, random)

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lengths of rows: of the longest array of each, where nothing is changed at random."""
        return self.index[numbers].astype(np.int64)

    @cached_property
    def index(self) -> NDArray[np.int32]:
        """The length of every row. Each is made once to measure it, and what was measured is kept in the cache."""
        made_by = hashlib.sha256(pickle.dumps(self.examples)).hexdigest()
        key = hashlib.sha256(f"lengths 1 {self.content} {made_by} {len(self)}".encode()).hexdigest()[:32]

        def build(folder: Path) -> None:
            rows = self.plain()
            measured = (longest(rows.row(number, 0, 0)) for number in range(len(rows)))
            np.fromiter(measured, np.int32, len(rows)).tofile(folder / "lengths")

        size = {"lengths": 4 * len(self)}
        folder = cached_folder("lengths", key, build, lambda there: wrong_size(there, size), "lengths of rows")
        return np.memmap(folder / "lengths", np.int32, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "index"}  # a worker needs no lengths


def longest(row: Arrays) -> int:
    """Return the length of the longest array of a row: tokens of a text, samples of a recording."""
    return max((len(array) for array in row.values() if np.ndim(array)), default=1)


def token_arrays(encoding: Any, segments: bool) -> Arrays:
    """Return an encoding's `input_ids`, and `token_type_ids` where the model tells the two texts of a pair apart."""
    row: Arrays = {"input_ids": np.asarray(encoding.ids)}
    return {**row, "token_type_ids": np.asarray(encoding.type_ids)} if segments else row


def stacked(rows: list[Row], fillers: Mapping[str, float]) -> Batch:
    """Stack every array of the rows.

    Arrays whose name is in `fillers` are padded at the end of their first axis to the longest, by that value; all
    others have one shape. `labels` of one axis need no filler: theirs is -100. `attention_mask` is made, 1 for what is
    no padding, where `input_ids` are padded and the rows have none.

    Raises:
        DataError: rows differ in their keys, or in the shape of what isn't padded.
    """
    names = list(rows[0].arrays)
    if any(list(row.arrays) != names for row in rows):
        raise DataError(f"rows of one batch differ in their keys: {sorted({n for row in rows for n in row.arrays})}")
    batch: Batch = {}
    for name in names:
        arrays = [row.arrays[name] for row in rows]
        batch[name] = torch.from_numpy(_together(name, arrays, fillers))
    if "input_ids" in fillers and "attention_mask" not in batch:
        lengths = torch.tensor([len(row.arrays["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


def _together(name: str, arrays: list[NDArray[Any]], fillers: Mapping[str, float]) -> NDArray[Any]:
    shapes = {np.shape(array) for array in arrays}
    if name in fillers or (name == "labels" and len(shapes) > 1 and {len(shape) for shape in shapes} == {1}):
        length = max(len(array) for array in arrays)
        value = fillers.get(name, IGNORED)
        rest = [(0, 0)] * (arrays[0].ndim - 1)
        arrays = [np.pad(a, [(0, length - len(a)), *rest], constant_values=value) for a in arrays]
    elif len(shapes) > 1:
        raise DataError(f"rows of one batch have {name} of several shapes, {sorted(shapes)}; they can't be stacked")
    return np.stack(arrays)
