"""What tasks of records share: which fields they read, and how a record becomes a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mlplatform.context import Output
from mlplatform.data.examples import Examples, Tools
from mlplatform.data.packing import Rows
from mlplatform.data.records import Reads, Record
from mlplatform.tasks.task import Batch, Task


class RecordTask(Task):
    """A task that learns from records. A subclass says four things: `reads`, `examples`, `targets` and `metrics`.

    What it shows of its own is in `measures` (torchmetrics, or anything with their methods), which `observe` feeds, and
    in `predictions`, which `mlplatform evaluate` writes.

    Attributes:
        tools: what the run has to make rows with, once its data is read.
        held_out: the records that are being validated; a batch's `numbers` say which of them it has.
    """

    reads_records = True
    attention = "any"
    class_field: str | None = None
    """The field whose classes the model's head has an output for, where there is one."""

    tools: Tools = Tools()
    held_out: Sequence[Record] = ()

    def reads(self) -> Reads:
        """Return the fields the task reads."""
        raise NotImplementedError

    def examples(self, tools: Tools) -> Examples:
        """Return what makes rows and batches.

        Raises:
            DataError: the run lacks a tool, or one doesn't fit.
        """
        raise NotImplementedError

    def settle(self, tools: Tools) -> None:
        """Take the run's tools: what the metrics are made with. Raises SpecError when the model doesn't fit them."""
        self.tools = tools

    def train_rows(self, rows: Rows) -> Rows:
        """Return the rows of training as this task wants them: mixed with others, for one."""
        return rows

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        """Return what the model says of each row of a held-out batch, as plain values."""
        raise NotImplementedError

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total, count, _ = sums.tolist()
        return {"validation/loss": total / count}
