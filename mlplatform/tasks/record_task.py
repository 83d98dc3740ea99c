"""What tasks of records share: which fields they read, and how a record becomes a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.examples import Examples, RecordRows, Tools
from mlplatform.data.records import Reads
from mlplatform.errors import SpecError, listing
from mlplatform.tasks.task import Batch, Task


class RecordTask(Task):
    """A task that learns from records. A subclass says `reads`, `examples`, `targets` and what it measures.

    What it shows of its own is in `measures` (torchmetrics, or anything with their methods), which `observe` feeds, and
    in `predictions`, which `mlplatform evaluate` writes.

    Attributes:
        tools: what the run has to make rows with. Before its data is read, a tokenizer that is trained on them and the
            classes are not among them yet.
        held_out: the record of each row that is validated; a batch's `numbers` say which rows it has.
    """

    reads_records = True
    attention = "any"
    class_field: str | None = None
    """The field whose classes the model's head has an output for, where there is one."""

    tools: Tools = Tools()
    held_out: RecordRows = RecordRows.none()

    def reads(self) -> Reads:
        """Return the fields the task reads."""
        raise NotImplementedError

    def examples(self, tools: Tools) -> Examples:
        """Return what makes rows and batches.

        Raises:
            DataError: the run lacks a tool, or one doesn't fit.
        """
        raise NotImplementedError

    def settle(self, tools: Tools, held_out: RecordRows | None = None) -> None:
        """Take the run's tools and the records that are validated. Raises SpecError when the model doesn't fit."""
        self.tools, self.held_out = tools, held_out or self.held_out
        self.prepare_measures(tools)
        if self.class_field:
            name_labels(self.model, tools.classes[self.class_field])

    def prepare_measures(self, tools: Tools) -> None:
        """Make the `measures`. Raises SpecError when the model doesn't fit the data."""

    def scored(self, batch: Batch) -> Output:
        """Return the model's output with the logits, which metrics read."""
        return self.model(**self.inputs(batch))

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        """Return what the model says of each row of a held-out batch, as plain values.

        None of them where a record takes several rows, or all of them are needed: see `whole_predictions`.
        """
        raise NotImplementedError

    def whole_predictions(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number of a row, prediction) of what can be said only after all rows were seen."""
        yield from ()

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total, count, _ = sums.tolist()
        return {"validation/loss": total / count}


def has_segments(model: Any) -> bool:
    """Whether a model of text tells the two texts of a pair apart by `token_type_ids`."""
    return getattr(model.trunk.input, "segments", None) is not None


def check_classes(model: nn.Module, count: int, names: Sequence[str]) -> None:
    """Raise SpecError when a model's head has not as many outputs as the data has classes."""
    if count == len(names):
        return
    head: Any = model.spec["head"]  # type: ignore[index]
    key = f"model.heads.{head}.labels" if isinstance(head, str) else "model.head.labels"
    told = f"the head has {count} outputs, and the data {len(names)} classes ({listing(names, 6)})"
    raise SpecError(f"{told}; set {key}={len(names)}")


def name_labels(model: nn.Module, names: Sequence[str]) -> None:
    """Keep the names of the classes with a model, for the config.json it is saved with (`id2label`, `label2id`)."""
    kept: dict[str, Any] = getattr(model, "hf_kept", None) or {}
    told = {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    model.hf_kept = {**kept, **told}  # type: ignore[assignment]
