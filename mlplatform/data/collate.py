"""From rows to the batches a model is called with: the hook where a task makes its labels.

A task's collator is a callable with an attribute `overlap` (see packing.py). It gets a micro-batch as a list of `Row`
and returns a dict of tensors, each (rows, length) int64 unless said otherwise:

    packed   input_ids, document_ids, position_ids, labels
    padded   input_ids, attention_mask, labels (an encoder-decoder's have a length of their own)
    and for validation num_bytes, one number: the bytes of text its targets stand for; the task takes it out before
    it calls the model

A collator of its own starts from `stack(rows, filler)`, makes `labels`, and ends with `count_bytes(batch)`; what it
draws at random comes from `row.generator()`, which neither workers nor ranks change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mlplatform.data.packing import IGNORED, Arrays, padded
from mlplatform.errors import DataError

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """The arrays of one row, and which sample it is: `number` -1 is a filler, a row given again."""

    arrays: Arrays
    seed: int
    epoch: int
    number: int

    def generator(self) -> np.random.Generator:
        """Return a fresh random generator that depends on (seed, epoch, number) alone."""
        return np.random.default_rng((self.seed, self.epoch, self.number + 1))


class Collator(Protocol):
    """Makes a micro-batch of rows."""

    overlap: int

    def __call__(self, rows: list[Row]) -> Batch: ...


class NextToken:
    """The collator of causal language modelling: the labels are the input ids, which the model shifts by one.

    Args:
        filler: the token that pads rows (`tokenizer.filler`).
    """

    overlap = 1

    def __init__(self, filler: int) -> None:
        self.filler = filler

    def __call__(self, rows: list[Row]) -> Batch:
        return count_bytes(stack(rows, self.filler))


def stack(rows: list[Row], filler: int) -> Batch:
    """Stack every array of the rows, padded to the longest of them. A key that a row lacks is an error."""
    length = max(len(row.arrays["input_ids"]) for row in rows)
    full = [padded(row.arrays, length, filler) for row in rows]
    if any(one.keys() != full[0].keys() for one in full):
        raise DataError(f"rows of one batch differ in their keys: {sorted({key for one in full for key in one})}")
    return {name: torch.from_numpy(np.stack([one[name] for one in full])) for name in full[0]}


def count_bytes(batch: Batch) -> Batch:
    """Replace `token_bytes`, where there is one, by `num_bytes`: the sum over the positions that `labels` counts."""
    if "token_bytes" not in batch:
        return batch
    counts = {"num_bytes": batch["token_bytes"][batch["labels"] != IGNORED].sum()}
    return {name: tensor for name, tensor in batch.items() if name != "token_bytes"} | counts


def trained_share(batch: Batch) -> float:
    """Return which part of the tokens (padding not counted) are targets.

    Raises:
        DataError: none or all of them are: nothing would be learned, or what comes first is scored on nothing.
    """
    real = batch["attention_mask"] if "attention_mask" in batch else batch["document_ids"]
    tokens, targets = int((real > 0).sum()), int((batch["labels"] != IGNORED).sum())
    if targets == 0 or targets >= tokens:
        share = "0%" if targets == 0 else "100%"
        told = f"{share} of the tokens would be trained ({targets} of {tokens} in the first rows)"
        raise DataError(f"{told}; `mlplatform data preview` prints what is masked; look at the task's options")
    return targets / tokens
