"""The kinds of `batch`: how many rows make an optimizer step, and which of them stand together."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mlplatform.data.order import Order
from mlplatform.data.packing import Rows
from mlplatform.data.plan import Budget, ByLength, Fixed, Plan
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Natural, Positive, block

CHUNK = 1 << 20
"""Rows whose lengths are looked at at a time."""


class BatchShape:
    """What all kinds share.

    Attributes:
        micro: sequences of one forward pass of one rank, at most.
        length: tokens of a sequence, at most. layout: how documents become sequences, see packing.py.
        workers, timeout: processes that read ahead, and the seconds after which a silent one is an error.
        divided: the field that says how many parts a step has.
    """

    divided = "sequences"

    def __init__(self, micro: int, length: int, layout: str, workers: int, timeout: int) -> None:
        if length < 8:
            raise SpecError(f"length={length} is too short for a sequence; 8 tokens are the least")
        self.micro, self.length, self.layout = micro, length, layout
        self.workers, self.timeout = workers, timeout

    @property
    def factors(self) -> tuple[int, int]:
        """Of a step over all ranks: how many parts it has, which ranks share evenly, and tokens of each, at most."""
        raise NotImplementedError

    def check_world(self, world: int, path: str) -> None:
        """Raise SpecError when the ranks can't share a step evenly."""
        count = self.factors[0]
        if count % world:
            told = f"{path or 'batch'}.{self.divided}={count} is not a multiple of the {world} ranks"
            raise SpecError(f"{told}; the next is {-(-count // world) * world}")

    def plan(self, order: Order, rows: Rows, seed: int) -> Plan:
        """Return how an order of rows is cut into steps. Raises DataError when a row can't be in any."""
        raise NotImplementedError


@block("batch/rows")
class RowsShape(BatchShape):
    """As many sequences in every optimizer step. Of records, each is one sequence.

    Args:
        sequences: sequences of one optimizer step, over all ranks and micro-batches.
        micro: sequences of one forward pass of one rank, at most.
        length: tokens of a sequence, at most.
        layout: of documents: `packed` puts one after the other and keeps them apart by `document_ids`; `padded` gives
            each its own rows.
        workers: processes that read ahead; with 0 a thread of the training process does.
        timeout: seconds after which a silent worker is an error.
    """

    def __init__(
        self,
        *,
        sequences: Positive = 32,
        micro: Positive = 8,
        length: Positive = 256,
        layout: Literal["packed", "padded"] = "packed",
        workers: Natural = 0,
        timeout: Positive = 300,
    ) -> None:
        super().__init__(micro, length, layout, workers, timeout)
        self.sequences = sequences

    @property
    def factors(self) -> tuple[int, int]:
        return self.sequences, self.length

    def plan(self, order: Order, rows: Rows, seed: int) -> Plan:
        return Fixed(order, self.sequences, self.micro)


@block("batch/grouped")
class GroupedShape(BatchShape):
    """As many sequences in every step, and in a micro-batch sequences of like length, so that there is less padding.

    Args:
        sequences: sequences of one optimizer step, over all ranks and micro-batches.
        micro: sequences of one forward pass of one rank, at most.
        length: tokens of a sequence, at most.
        window: steps whose sequences are sorted by length together; their micro-batches are then shuffled. More of them
            leave less padding and less chance.
        workers: processes that read ahead; with 0 a thread of the training process does.
        timeout: seconds after which a silent worker is an error.
    """

    def __init__(
        self,
        *,
        sequences: Positive = 32,
        micro: Positive = 8,
        length: Positive = 256,
        window: Positive = 50,
        workers: Natural = 0,
        timeout: Positive = 300,
    ) -> None:
        super().__init__(micro, length, "padded", workers, timeout)
        self.sequences, self.window = sequences, window

    @property
    def factors(self) -> tuple[int, int]:
        return self.sequences, self.length

    def plan(self, order: Order, rows: Rows, seed: int) -> Plan:
        grouped = ByLength(order, rows.lengths, self.micro, self.window * self.sequences, seed)
        return Fixed(grouped, self.sequences, self.micro)


@block("batch/budget")
class BudgetShape(BatchShape):
    """As many tokens in every forward pass as fit, padding counted: many short sequences or a few long ones.

    What is counted of a sequence is its longest array: the tokens of a text, the samples of a recording.

    Args:
        tokens: tokens of one forward pass of one rank, padding counted, at most.
        micro_batches: forward passes of one optimizer step, over all ranks.
        micro: sequences of one forward pass, at most.
        length: tokens of a sequence, at most.
        window: sequences that are sorted by length together; their micro-batches are then shuffled.
        workers: processes that read ahead; with 0 a thread of the training process does.
        timeout: seconds after which a silent worker is an error.
    """

    divided = "micro_batches"

    def __init__(
        self,
        *,
        tokens: Positive = 2048,
        micro_batches: Positive = 4,
        micro: Positive = 64,
        length: Positive = 256,
        window: Positive = 2048,
        workers: Natural = 0,
        timeout: Positive = 300,
    ) -> None:
        super().__init__(min(micro, max(1, tokens // length)), length, "padded", workers, timeout)
        self.tokens, self.micro_batches, self.most, self.window = tokens, micro_batches, micro, window

    @property
    def factors(self) -> tuple[int, int]:
        return self.micro_batches, self.tokens

    def plan(self, order: Order, rows: Rows, seed: int) -> Plan:
        for start in range(0, len(rows), CHUNK):
            numbers = np.arange(start, min(start + CHUNK, len(rows)))
            found = rows.lengths(numbers)
            if found.max() > self.tokens:
                told = f"row {numbers[found.argmax()]} alone has a length of {found.max()}"
                raise DataError(f"batch.tokens={self.tokens}: {told}; give more tokens, or set batch.length lower")
        window = -(-self.window // self.micro_batches) * self.micro_batches
        return Budget(order, rows.lengths, self.tokens, self.most, self.micro_batches, window, seed)
