"""Rows of tokens: how documents become sequences of one length.

A row is a dict of arrays, all of one length. `overlap` is 1 for next-token training, where a row's first token is only
looked back at, so consecutive rows share one token and every token is a target exactly once; and 0 where rows stand
alone (masked LM).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlplatform.data.tokens import Tokens
from mlplatform.errors import DataError

IGNORED = -100
"""The label of a token that is no target."""

Arrays = dict[str, NDArray[Any]]


class Rows(Protocol):
    """A split as numbered rows."""

    def __len__(self) -> int:
        """The number of rows in an epoch."""
        ...

    def row(self, number: int, seed: int, epoch: int) -> Arrays:
        """Return one row. From epoch 1 on, (seed, epoch) may move where documents are cut."""
        ...

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the length of each row of the given numbers, without reading them where that can be known."""
        ...


class Packed:
    """The documents one after the other, cut every `length` tokens: no padding but in the last row.

    Row: `input_ids`; `document_ids`, 1 for the row's first document, then 2, ...; 0 is padding; `position_ids`, from 0
    in each document; with overlap `labels`, the input ids but -100 at the first token of each document, which nothing
    comes before; and for a split that knows it, `token_bytes`. A document cut by the row's edge goes on in the next
    row as a document of its own.

    From the second epoch on the documents start at another one of them, so they are cut at other places.
    """

    def __init__(self, tokens: Tokens, length: int, overlap: int, filler: int) -> None:
        self.tokens, self.length, self.overlap, self.filler = tokens, length, overlap, filler
        self.stride = length - overlap

    def __len__(self) -> int:
        return -(-(len(self.tokens) - self.overlap) // self.stride) if len(self.tokens) else 0

    def row(self, number: int, seed: int, epoch: int) -> Arrays:
        total = len(self.tokens)
        first = self._first(seed, epoch) + number * self.stride
        count = min(self.length, total - number * self.stride)
        pieces = [(first % total, min(first % total + count, total))]
        if (rest := count - (pieces[0][1] - pieces[0][0])) > 0:
            pieces.append((0, rest))
        return self._arrays(pieces)

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.full(len(numbers), self.length)

    def _first(self, seed: int, epoch: int) -> int:
        """Return the token an epoch begins with: the start of a document, so that the circle closes there."""
        if epoch == 0:
            return 0
        chosen = np.random.default_rng((seed, epoch)).integers(self.tokens.documents)
        return int(self.tokens.offsets[chosen])

    def _arrays(self, pieces: list[tuple[int, int]]) -> Arrays:
        ids = np.concatenate([self.tokens.read(start, stop) for start, stop in pieces])
        begins = np.concatenate([self._begins(start, stop) for start, stop in pieces])
        begins[0] = True
        places = np.arange(len(ids))
        positions = places - np.maximum.accumulate(np.where(begins, places, 0))
        row = {"input_ids": ids, "document_ids": np.cumsum(begins), "position_ids": positions}
        if self.overlap:
            row["labels"] = np.where(begins, IGNORED, ids)
        if self.tokens.split == "validation":
            row["token_bytes"] = np.concatenate([self.tokens.read_bytes(start, stop) for start, stop in pieces])
        return padded(row, self.length, self.filler)

    def _begins(self, start: int, stop: int) -> NDArray[np.bool_]:
        begins = np.zeros(stop - start, dtype=bool)
        low, high = np.searchsorted(self.tokens.offsets, [start, stop])
        begins[self.tokens.offsets[low:high] - start] = True
        return begins


class Padded:
    """One document a row; one longer than `length` goes on in the next row. Rows are as long as their text.

    Row: `input_ids`, `attention_mask` (1); with overlap `labels`, the input ids but -100 at the first token; without,
    each row has its own start and end token. `collate` pads rows to the longest.
    """

    def __init__(self, tokens: Tokens, length: int, overlap: int, filler: int) -> None:
        self.tokens, self.overlap = tokens, overlap
        self.stride = length - 1 if overlap else length - 2
        inner = np.diff(tokens.offsets) - (1 if overlap else 2)
        self.ends = np.cumsum(np.maximum(1, -(-inner // self.stride)))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        documents = np.searchsorted(self.ends, numbers, side="right")
        parts = numbers - np.where(documents > 0, self.ends[documents - 1], 0)
        ends = 1 if self.overlap else 2  # tokens beside the stride's: the one before it, or a start and an end
        inner = self.tokens.offsets[documents + 1] - self.tokens.offsets[documents] - ends
        return ends + np.clip(inner - parts * self.stride, 0, self.stride)

    def row(self, number: int, seed: int, epoch: int) -> Arrays:
        document = int(np.searchsorted(self.ends, number, side="right"))
        part = number - (int(self.ends[document - 1]) if document else 0)
        first, last = (int(x) for x in self.tokens.offsets[document : document + 2])
        if self.overlap:
            start = first + part * self.stride
            places = np.arange(start, min(start + self.stride + 1, last))
        else:
            start = first + 1 + part * self.stride
            places = np.concatenate([[first], np.arange(start, min(start + self.stride, last - 1)), [last - 1]])
        return self._arrays(places)

    def _arrays(self, places: NDArray[np.int64]) -> Arrays:
        def pick(read: NDArray[np.int64]) -> NDArray[np.int64]:
            return read[places - low]

        low, high = int(places.min()), int(places.max()) + 1
        row = {"input_ids": pick(self.tokens.read(low, high)), "attention_mask": np.ones(len(places), np.int64)}
        if self.overlap:
            row["labels"] = row["input_ids"].copy()
            row["labels"][0] = IGNORED
        if self.tokens.split == "validation":
            row["token_bytes"] = pick(self.tokens.read_bytes(low, high))
        return row


def padded(row: Arrays, length: int, filler: int) -> Arrays:
    """Lengthen every array of a row: `input_ids` by the filler token, `labels` by -100, all others by 0."""
    blank = {"input_ids": filler, "labels": IGNORED}
    return {name: _lengthened(array, length, blank.get(name, 0)) for name, array in row.items()}


def _lengthened(array: NDArray[Any], length: int, blank: int) -> NDArray[np.int64]:
    """Return what np.pad does in ten times the time, which was half of what a packed row took."""
    if len(array) == length:
        return array.astype(np.int64, copy=False)
    longer = np.full(length, blank, dtype=np.int64)
    longer[: len(array)] = array
    return longer


def rows(tokens: Tokens, layout: str, length: int, overlap: int, filler: int) -> Rows:
    """Return a split as rows of the layout `packed` or `padded`.

    Raises:
        DataError: there is not enough text for one row of training.
    """
    if tokens.split == "train" and len(tokens) < length:
        told = f"the data has {len(tokens)} tokens to train on ({tokens.bytes} bytes), and one sequence takes {length}"
        raise DataError(f"{told}; give more text, or set batch.length={max(8, len(tokens) // 2)} or less")
    return {"packed": Packed, "padded": Padded}[layout](tokens, length, overlap, filler)
