"""What tasks of one class for each row share: the head's size, the metrics, the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlplatform.context import Output
from mlplatform.data.examples import Tools
from mlplatform.tasks.record_task import RecordTask, check_classes
from mlplatform.tasks.scores import of_classes
from mlplatform.tasks.task import Batch


class OneClass(RecordTask):
    """A task whose field `label` is one class. Metrics: accuracy, macro F1, Matthews correlation.

    A subclass says `reads` and `examples`.
    """

    head_task = "sequence_classification"
    class_field = "label"

    def prepare_measures(self, tools: Tools) -> None:
        count: int = self.model.head.out.out_features  # type: ignore[union-attr,assignment]
        check_classes(self.model, count, tools.classes["label"])
        self.measures = dict(of_classes(count))

    def targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def observe(self, batch: Batch, out: Output) -> None:
        for measure in self.measures.values():
            measure.update(out.logits.float(), batch["labels"])

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        return likeliest(out.logits, self.tools.classes["label"])


def likeliest(logits: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the likeliest class of each row of logits (rows, classes), and its probability."""
    best, place = logits.detach().float().softmax(-1).max(-1)
    return [{"label": names[i], "score": s} for i, s in zip(place.tolist(), best.tolist(), strict=True)]
