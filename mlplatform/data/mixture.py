"""Mixtures: several sources that are learned from together, by weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mlplatform.data.order import Mixed
from mlplatform.data.packing import Arrays, Rows
from mlplatform.data.records import SPLITS, Numbered, Reads, Record, RecordSource, Splits, in_order
from mlplatform.data.sources import Source
from mlplatform.errors import DataError, SpecError, did_you_mean, listing
from mlplatform.registry import NonNegativeFloat, Spec, block


@dataclass(frozen=True)
class Mixture:
    """Sources by name, and the weight of each; those of weight 0 are left out."""

    parts: Mapping[str, Any]
    weights: Mapping[str, Fraction]

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return f"the mixture of {listing(self.parts)}"

    def order(self, counts: Sequence[int], seed: int) -> Mixed:
        """Return the order in which so many samples of each part are trained on."""
        return Mixed(counts, list(self.weights.values()), seed)

    def shares(self) -> dict[str, float]:
        """Return the weights as shares of the whole, for the run record."""
        total = sum(self.weights.values())
        return {name: float(weight / total) for name, weight in self.weights.items()}


class DocumentMixture(Mixture):
    """A mixture of documents, as a corpus too: a tokenizer is trained on a document of each part in turn."""

    parts: Mapping[str, Source]

    def fingerprint(self) -> str:
        """Return a hash of the parts' texts."""
        return _digest({name: part.fingerprint() for name, part in self.parts.items()})

    def train_texts(self) -> Iterator[str]:
        """Yield the texts of the train splits, one of each part in turn as long as it has any."""
        reading = [part.train_texts() for part in self.parts.values()]
        while reading:
            for texts in list(reading):
                if (text := next(texts, None)) is None:
                    reading.remove(texts)
                else:
                    yield text


class RecordMixture(Mixture):
    """A mixture of records; the classes are those of all parts."""

    parts: Mapping[str, RecordSource]

    def open(self, reads: Reads) -> Splits:
        """Open every part. Raises DataError with the part's name, as for a single source."""
        opened: dict[str, Splits] = {}
        for name, part in self.parts.items():
            with told_of(name):
                opened[name] = part.open(reads)
        parts = list(opened.values())
        fields = {field for part in parts for field in part.classes}
        classes = {field: _together([part.classes[field] for part in parts]) for field in sorted(fields)}
        untrained = {field: _untrained(parts, field, names) for field, names in classes.items()}
        return Splits(
            splits={split: Joined([part.splits[split] for part in parts]) for split in SPLITS},
            classes=classes,
            skipped={file: count for part in parts for file, count in part.skipped.items()},
            filtered=sum(part.filtered for part in parts),
            content=_digest({name: part.content for name, part in opened.items()}),
            reads=reads,
            untrained={field: names for field, names in untrained.items() if names},
        )


@block("data/mixture")
def mixture(
    *, parts: dict[str, Annotated[Spec, "data"]], weights: dict[str, NonNegativeFloat]
) -> DocumentMixture | RecordMixture:
    """Several sources, all of documents or all of records, of which training takes samples by weights.

    Of the first n samples a part has n times its weight's share, for every n; one that is exhausted begins anew in
    another order. What is held out is that of all parts.

    Args:
        parts: each source by a name of its own: `{plays: {kind: text, path: plays.txt}, code: {kind: jsonl, ...}}`.
        weights: of each part, in proportion to each other; 0 leaves a part out.
    """
    chosen = _weights(parts, weights)
    records = {name: holds_records(parts[name]) for name in chosen}
    if len(set(records.values())) > 1:
        ours, theirs = (next(name for name, held in records.items() if held is kind) for kind in (True, False))
        raise SpecError(f"parts: '{ours}' holds records and '{theirs}' documents; a mixture is of one of them")
    sources: dict[str, Any] = {}
    for name in chosen:
        with told_of(name):
            sources[name] = parts[name].build()
    return (RecordMixture if all(records.values()) else DocumentMixture)(sources, chosen)


def _weights(parts: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Fraction]:
    for name in weights:
        if name not in parts:
            near = did_you_mean(name, parts)
            raise SpecError(f"weights: there is no part '{name}'{near}; the parts are {listing(parts)}")
    if missing := [name for name in parts if name not in weights]:
        raise SpecError(f"weights: none for the part '{missing[0]}'; give each part a number, 0 to leave it out")
    exact = {name: Fraction(str(weights[name])) for name in parts}  # as it is written: 0.1 is a tenth
    if not any(exact.values()):
        raise SpecError("weights: all of them are 0; give at least one part a weight above 0")
    return {name: weight for name, weight in exact.items() if weight}


def holds_records(data: Spec) -> bool:
    """Whether a source is of records, not of documents. Raises SpecError for a mixture in a mixture."""
    made = data.thing
    if made is not mixture:
        return isinstance(made, type) and issubclass(made, RecordSource)
    inner = [Spec(part, f"{data.path}.parts.{name}", "data") for name, part in data["parts"].items()]
    for part in inner:
        if part.thing is mixture:
            raise SpecError(problems=[(part.path, "a mixture can't be part of one; name its parts beside the others")])
    return any(holds_records(part) for part in inner)


@contextlib.contextmanager
def told_of(part: str) -> Iterator[None]:
    """Put the name of a part before what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data.parts.{part}: {error}") from None


class Joined(Numbered):
    """The records of several parts, one part after the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts, self.ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def at(self, number: int) -> Record:
        part, within = _place(self.ends, number)
        return self.parts[part][within]


class JoinedRows:
    """The rows of several parts, one part after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts, self.ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def row(self, number: int, seed: int, epoch: int) -> Arrays:
        part, within = _place(self.ends, number)
        return self.parts[part].row(within, seed, epoch)

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.empty(len(numbers), np.int64)
        of = np.searchsorted(self.ends, numbers, side="right")
        for part, (rows, first) in enumerate(zip(self.parts, [0, *self.ends], strict=False)):
            found[of == part] = rows.lengths(numbers[of == part] - first)
        return found


def _place(ends: list[int], number: int) -> tuple[int, int]:
    part = int(np.searchsorted(ends, number, side="right"))
    return part, number - (ends[part - 1] if part else 0)


def _together(classes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the classes of all parts: in the order the parts agree on, or sorted."""
    return classes[0] if len(set(classes)) == 1 else tuple(in_order(list({name for one in classes for name in one})))


def _untrained(parts: Sequence[Splits], field: str, names: Sequence[str]) -> list[str]:
    trained = {name for part in parts for name in part.classes[field] if name not in part.untrained.get(field, [])}
    return [name for name in names if name not in trained]


def _digest(parts: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{name} {content}" for name, content in parts.items()).encode()).hexdigest()
