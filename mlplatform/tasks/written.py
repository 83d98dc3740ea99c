"""What tasks share that are scored by the texts their model writes about the first held-out rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mlplatform.context import Output
from mlplatform.tasks.record_task import RecordTask
from mlplatform.tasks.task import Batch, loss_and_perplexity


class Written(RecordTask):
    """A task whose model writes texts. A subclass says `written`.

    Attributes:
        sampled: how many held-out rows are written about in validation; the first ones.
    """

    head_task = "causal_lm"
    answer_field = "text"
    """The field with what should be written: a text, or several of which each is right. Predictions have it too."""
    sampled: int = 0

    def written(self, batch: Batch, out: Output) -> list[str]:
        """Return what the model writes about each row; what was written once is kept in `out`."""
        raise NotImplementedError

    def scored(self, batch: Batch) -> Output:
        return self.model(**self.inputs(batch), logits=False)

    def observe(self, batch: Batch, out: Output) -> None:
        numbers = batch["numbers"].tolist()
        chosen = [row for row, number in enumerate(numbers) if number < self.sampled]
        said = self.written(batch, out) if chosen and self.measures else []
        wanted = [self.held_out[numbers[row]][self.answer_field] for row in chosen]
        for measure in self.measures.values():
            measure.update([said[row] for row in chosen], wanted)

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        return [{self.answer_field: text} for text in self.written(batch, out)]

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return loss_and_perplexity(sums)
