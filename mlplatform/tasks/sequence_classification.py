"""Classes or a number for a text, or for a pair of texts. arXiv:1810.04805, section 4.1"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools, stacked, token_arrays
from mlplatform.data.fields import Class, Classes, Number, Words
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.registry import block
from mlplatform.tasks.one_class import likeliest
from mlplatform.tasks.record_task import RecordTask, check_classes, has_segments
from mlplatform.tasks.scores import of_classes, of_numbers, of_sets
from mlplatform.tasks.task import Batch

LABELS = {"single_label": Class, "multi_label": Classes, "regression": Number}


@block("task/sequence_classification")
class SequenceClassification(RecordTask):
    """Fields: `text`, perhaps `pair`, and `label`: a class, a list of classes or a number, by `model.head.problem`.

    Metrics: accuracy, macro F1 and Matthews correlation of classes; micro and macro F1 of lists; Pearson and Spearman
    correlation and the mean squared error of numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.problem: str = model.head.problem  # type: ignore[union-attr,assignment]
        self.class_field = None if self.problem == "regression" else "label"

    def reads(self) -> Reads:
        return Reads({"text": Words(), "pair": Words(), "label": LABELS[self.problem]()}, frozenset({"pair"}))

    def examples(self, tools: Tools) -> LabelledTexts:
        tokenizer = tools.need("tokenizer", self.kind)
        numbers = tools.numbers("label") if self.class_field else {}
        return LabelledTexts(tokenizer, tools.length, self.problem, numbers, has_segments(self.model))

    def prepare_measures(self, tools: Tools) -> None:
        count: int = self.model.head.out.out_features  # type: ignore[union-attr,assignment]
        if self.class_field:
            check_classes(self.model, count, tools.classes["label"])
        made = {"single_label": of_classes, "multi_label": of_sets, "regression": of_numbers}[self.problem]
        self.measures = made(count)

    def targets(self, batch: Batch) -> Tensor:
        labels = batch["labels"]
        return torch.tensor(labels.numel(), device=labels.device)

    def observe(self, batch: Batch, out: Output) -> None:
        for measure in self.measures.values():
            measure.update(out.logits.float().squeeze(-1), batch["labels"])

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        logits = out.logits.detach().float().cpu()
        if self.problem == "regression":
            return [{"label": float(value)} for value in logits.squeeze(-1)]
        names = self.tools.classes["label"]
        if self.problem == "multi_label":
            shares = logits.sigmoid().tolist()
            return [{"label": [n for n, s in zip(names, row, strict=True) if s > 0.5], "scores": row} for row in shares]
        return likeliest(logits, names)


class LabelledTexts:
    """Rows of token numbers, each text (or pair, the longer one first) cut to the length of a row."""

    def __init__(self, tokenizer: Any, length: int, problem: str, numbers: Mapping[str, int], segments: bool) -> None:
        self.tokenizer, self.length, self.problem = tokenizer, length, problem
        self.numbers, self.segments = dict(numbers), segments

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        made = self.tokenizer.cut(record["text"], record.get("pair"), self.length)
        return {**token_arrays(made, self.segments), "labels": self._label(record["label"])}

    def _label(self, label: Any) -> np.ndarray[Any, Any]:
        if self.problem == "regression":
            return np.asarray(label, dtype=np.float32)
        if self.problem == "single_label":
            return np.asarray(self.numbers[label])
        row = np.zeros(len(self.numbers), dtype=np.int64)
        row[[self.numbers[name] for name in label]] = 1
        return row

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": self.tokenizer.filler, "token_type_ids": 0})
