"""A class for an image. arXiv:2010.11929"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Class, Picture
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.registry import block
from mlplatform.tasks.record_task import RecordTask, check_classes
from mlplatform.tasks.scores import of_classes
from mlplatform.tasks.task import Batch


@block("task/image_classification")
class ImageClassification(RecordTask):
    """Fields: `image` and `label`. Metrics: accuracy, macro F1, Matthews correlation."""

    reads_key = "pixel_values"
    head_task = "sequence_classification"
    class_field = "label"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def reads(self) -> Reads:
        return Reads({"image": Picture(), "label": Class()})

    def examples(self, tools: Tools) -> LabelledImages:
        return LabelledImages(tools.need("processor", self.kind), tools.numbers("label"))

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
        names = self.tools.classes["label"]
        best, place = out.logits.float().softmax(-1).max(-1)
        return [{"label": names[i], "score": s} for i, s in zip(place.tolist(), best.tolist(), strict=True)]


class LabelledImages:
    """Rows of pixel values."""

    def __init__(self, processor: Any, numbers: Mapping[str, int]) -> None:
        self.processor, self.numbers = processor, dict(numbers)

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        pixels = self.processor(record["image"])["pixel_values"][0].numpy()
        return {"pixel_values": pixels, "labels": np.asarray(self.numbers[record["label"]])}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {})
