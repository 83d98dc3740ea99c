"""What rows are made of: documents as one stream of tokens, or records, one row each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mlplatform.data.collate import Batch, Collator, trained_share
from mlplatform.data.examples import Examples, RecordRows
from mlplatform.data.mixture import DocumentMixture, Joined, JoinedRows, RecordMixture, told_of
from mlplatform.data.order import Order, Shuffled
from mlplatform.data.packing import Rows, rows
from mlplatform.data.records import RecordSource, Splits
from mlplatform.data.sources import Source
from mlplatform.data.tokens import Store, tokenised
from mlplatform.processors.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Material(Protocol):
    """A source and the tools that make rows of it."""

    name: str
    """What to call it in messages."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The run's, where it has one."""
        ...

    def splits(self, shape: Any, collator: Any) -> Mapping[str, Rows]:
        """Return the rows of `train`, `validation` and where there is one `test`; those it lacks have no rows.

        Args:
            shape: a `batch` (module.py). collator: the task's, which may be handed on to the rows.

        Raises:
            DataError: unreadable data, an empty split, or too little of it.
        """
        ...

    def order(self, rows: Rows, seed: int) -> Order:
        """Return the order in which the rows of the train split are trained on."""
        ...

    def check(self, batch: Batch) -> None:
        """Look at a first micro-batch. Raises DataError when nothing could be learned from it."""
        ...

    def record(self) -> dict[str, Any]:
        """Return what the run record keeps about the data; called after `splits`."""
        ...


class DocumentMaterial:
    """Documents, tokenised once and cached, and laid out as rows of `batch.length` tokens."""

    def __init__(self, source: Source, tokenizer: Tokenizer) -> None:
        self.source, self.tokenizer, self.name = source, tokenizer, source.name
        self.store: Store | None = None

    def splits(self, shape: Any, collator: Collator) -> Mapping[str, Rows]:
        self.store = store = tokenised(self.source, self.tokenizer)
        _tell_skipped(store.skipped)
        layout = (shape.layout, shape.length, collator.overlap, self.tokenizer.filler)
        return {"train": rows(store.train, *layout), "validation": rows(store.validation, *layout)}

    def order(self, rows: Rows, seed: int) -> Order:
        return Shuffled(len(rows), seed)

    def check(self, batch: Batch) -> None:
        trained_share(batch)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text a train token stands for on average: bits per byte = loss / ln 2 / this."""
        assert self.store is not None
        return self.store.train.bytes / (len(self.store.train) - self.store.train.documents)

    def record(self) -> dict[str, Any]:
        assert self.store is not None
        splits = {
            name: {"documents": split.documents, "tokens": len(split), "bytes": split.bytes}
            for name, split in (("train", self.store.train), ("validation", self.store.validation))
        }
        return {
            **splits,
            "bytes_per_token": round(self.bytes_per_token, 4),
            "vocabulary": self.tokenizer.vocab_size,
            "fingerprint": self.source.fingerprint(),
            "skipped_rows": self.store.skipped,
            "cache": str(self.store.folder),
        }


class MixedMaterial:
    """Documents of several sources, each tokenised and kept by itself, so that other weights tokenise nothing anew."""

    def __init__(self, mixture: DocumentMixture, tokenizer: Tokenizer) -> None:
        self.mixture, self.tokenizer, self.name = mixture, tokenizer, mixture.name
        self.parts = {name: DocumentMaterial(source, tokenizer) for name, source in mixture.parts.items()}

    def splits(self, shape: Any, collator: Collator) -> Mapping[str, Rows]:
        found = []
        for name, part in self.parts.items():
            with told_of(name):
                found.append(part.splits(shape, collator))
        return {split: JoinedRows([one[split] for one in found]) for split in found[0]}

    def order(self, rows: Rows, seed: int) -> Order:
        assert isinstance(rows, JoinedRows)
        return self.mixture.order([len(part) for part in rows.parts], seed)

    def check(self, batch: Batch) -> None:
        trained_share(batch)

    def record(self) -> dict[str, Any]:
        parts = {name: part.record() for name, part in self.parts.items()}
        every = list(parts.values())
        return {
            **{split: _summed([one[split] for one in every]) for split in ("train", "validation")},
            "vocabulary": self.tokenizer.vocab_size,
            "fingerprint": self.mixture.fingerprint(),
            "skipped_rows": {file: count for one in every for file, count in one["skipped_rows"].items()},
            "weights": self.mixture.shares(),
            "parts": parts,
        }


def documents(source: Source | DocumentMixture, tokenizer: Tokenizer) -> DocumentMaterial | MixedMaterial:
    """Return a source of documents, or several, as what rows are made of."""
    return (
        MixedMaterial(source, tokenizer) if isinstance(source, DocumentMixture) else DocumentMaterial(source, tokenizer)
    )


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in counts) for name in counts[0]}


class RecordMaterial:
    """Records, read in place; the task's examples make a row of each when it is asked for."""

    def __init__(
        self, source: RecordSource | RecordMixture, opened: Splits, tokenizer: Tokenizer | None = None
    ) -> None:
        self.source, self.opened, self.tokenizer, self.name = source, opened, tokenizer, source.name

    def splits(self, shape: Any, collator: Examples) -> Mapping[str, Rows]:
        _tell_skipped(self.opened.skipped)
        if self.opened.untrained:
            log.warning("classes that no record to train on has: %s", dict(self.opened.untrained))
        return {
            name: RecordRows(records, collator, training=name == "train", content=self.opened.content)
            for name, records in self.opened.splits.items()
        }

    def order(self, rows: Rows, seed: int) -> Order:
        if not isinstance(self.source, RecordMixture):
            return Shuffled(len(rows), seed)
        records = self.opened.splits["train"]
        assert isinstance(rows, RecordRows)
        assert isinstance(records, Joined)
        return self.source.order(np.diff([rows.first(end) for end in (0, *records.ends)]).tolist(), seed)

    def check(self, batch: Batch) -> None:
        """Nothing: every record has what the task reads."""

    def record(self) -> dict[str, Any]:
        return {
            **{name: {"records": len(records)} for name, records in self.opened.splits.items()},
            "classes": {name: list(labels) for name, labels in self.opened.classes.items()},
            "vocabulary": self.tokenizer.vocab_size if self.tokenizer else None,
            "fingerprint": self.opened.content,
            "skipped_rows": dict(self.opened.skipped),
            "filtered_rows": self.opened.filtered,
            "untrained_classes": dict(self.opened.untrained),
            **({"weights": self.source.shares()} if isinstance(self.source, RecordMixture) else {}),
        }


def _tell_skipped(skipped: Mapping[str, int]) -> None:
    if skipped:
        log.warning("%d bad rows left out: %s", sum(skipped.values()), dict(skipped))
