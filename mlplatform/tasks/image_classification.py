"""A class for an image. arXiv:2010.11929"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Class, Picture
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.registry import block
from mlplatform.tasks.one_class import OneClass
from mlplatform.tasks.task import Batch


@block("task/image_classification")
class ImageClassification(OneClass):
    """Fields: `image` and `label`. Metrics: accuracy, macro F1, Matthews correlation."""

    reads_key = "pixel_values"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def reads(self) -> Reads:
        return Reads({"image": Picture(), "label": Class()})

    def examples(self, tools: Tools) -> LabelledImages:
        return LabelledImages(tools.need("processor", self.kind), tools.numbers("label"))


class LabelledImages:
    """Rows of pixel values."""

    def __init__(self, processor: Any, numbers: Mapping[str, int]) -> None:
        self.processor, self.numbers = processor, dict(numbers)

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        pixels = self.processor(record["image"])["pixel_values"][0].numpy()
        return {"pixel_values": pixels, "labels": np.asarray(self.numbers[record["label"]])}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {})
