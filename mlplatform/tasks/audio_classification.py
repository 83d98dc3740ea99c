"""A class for a recording: what is said, by whom, in which language. arXiv:2105.01051"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Class
from mlplatform.data.packing import Arrays
from mlplatform.data.recordings import Heard, Recording
from mlplatform.data.records import Reads, Record
from mlplatform.registry import NonNegativeFloat, PositiveFloat, block
from mlplatform.tasks.one_class import OneClass
from mlplatform.tasks.task import Batch

SOUND = ("input_values", "input_features")


@block("task/audio_classification")
class AudioClassification(OneClass):
    """Fields: `audio` and `label`. Metrics: accuracy, macro F1, Matthews correlation.

    Args:
        shortest, longest: seconds of a recording; one of another length is a bad row. null: no limit.
    """

    reads_key = SOUND[0]

    def __init__(
        self, model: nn.Module, *, shortest: NonNegativeFloat = 0.0, longest: PositiveFloat | None = None
    ) -> None:
        super().__init__(model)
        self.limits = (shortest, longest)

    def check_model(self, model: nn.Module) -> None:
        """As other tasks, and either kind of sound is read: waves and spectrograms."""
        read = getattr(getattr(getattr(model, "trunk", None), "input", None), "reads", None)
        self.reads_key = read if read in SOUND else self.reads_key
        super().check_model(model)

    def reads(self) -> Reads:
        return Reads({"audio": Recording(*self.limits), "label": Class()})

    def examples(self, tools: Tools) -> LabelledRecordings:
        return LabelledRecordings(tools.need("processor", self.kind), tools.numbers("label"))


class LabelledRecordings:
    """Rows of sound and the number of its class."""

    def __init__(self, processor: Any, numbers: Mapping[str, int]) -> None:
        self.heard, self.numbers = Heard(processor), dict(numbers)

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        return {**self.heard(record["audio"]), "labels": np.asarray(self.numbers[record["label"]])}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, Heard.fillers)
