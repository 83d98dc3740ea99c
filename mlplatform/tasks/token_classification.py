"""A class for each word of a text: names, parts of speech. arXiv:1810.04805, section 5.3"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked, token_arrays
from mlplatform.data.fields import ListOfWords, Tags, Values
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.registry import block
from mlplatform.tasks.entities import EntityScores, are_entities
from mlplatform.tasks.record_task import RecordTask, check_classes, has_segments
from mlplatform.tasks.scores import need_package, of_classes
from mlplatform.tasks.task import Batch, count_targets


@block("task/token_classification")
class TokenClassification(RecordTask):
    """Fields: `tokens`, the words of a text, and `tags`, a class for each. A word's first piece is what is scored.

    Metrics: accuracy, macro F1 and Matthews correlation over words; where the tags are of the form B-x and I-x also
    precision, recall and F1 of whole entities, as CoNLL's (seqeval).
    """

    class_field = "tags"
    monitor = "validation/accuracy"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def reads(self) -> Reads:
        return Reads({"tokens": ListOfWords(), "tags": Tags()}, check=same_length)

    def examples(self, tools: Tools) -> TaggedWords:
        tokenizer = tools.need("tokenizer", self.kind)
        return TaggedWords(tokenizer, tools.length, tools.numbers("tags"), has_segments(self.model))

    def prepare_measures(self, tools: Tools) -> None:
        names, count = tools.classes["tags"], self.model.head.out.out_features  # type: ignore[union-attr]
        check_classes(self.model, count, names)  # type: ignore[arg-type]
        self.measures = dict(of_classes(len(names)))
        if are_entities(names):
            need_package("seqeval", "scores of entities", "task")
            self.measures |= {f"entity_{what}": EntityScores(names, what) for what in ("f1", "precision", "recall")}
            self.monitor = "validation/entity_f1"

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"])

    def observe(self, batch: Batch, out: Output) -> None:
        logits, labels = out.logits.float(), batch["labels"]
        for measure in self.measures.values():
            if isinstance(measure, EntityScores):
                measure.update(logits.argmax(-1), labels)
            else:
                measure.update(logits.flatten(0, 1), labels.flatten())

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        names = self.tools.classes["tags"]
        rows = zip(out.logits.argmax(-1), batch["labels"], strict=True)
        return [{"tags": [names[i] for i in said[labels != IGNORED].tolist()]} for said, labels in rows]


def same_length(values: Values) -> None:
    """Raise ValueError when a row has not as many tags as words."""
    words, tags = len(values["tokens"]), len(values["tags"])
    if words != tags:
        raise ValueError(f"'tokens' has {words} entries and 'tags' {tags}; each word has one")


class TaggedWords:
    """Rows of token numbers; the first piece of each word has its label, all others -100, as Hugging Face's."""

    def __init__(self, tokenizer: Any, length: int, numbers: Mapping[str, int], segments: bool) -> None:
        self.tokenizer, self.length, self.numbers, self.segments = tokenizer, length, dict(numbers), segments

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        made = self.tokenizer.cut_words(record["tokens"], self.length)
        labels = [self.numbers[tag] for tag in record["tags"]]
        return {**token_arrays(made, self.segments), "labels": np.asarray(on_first_pieces(made.word_ids, labels))}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": self.tokenizer.filler, "token_type_ids": 0, "labels": IGNORED})


def on_first_pieces(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """Return a label for each piece: the word's at its first one, -100 at the rest and at special tokens."""
    before = [None, *word_ids[:-1]]
    return [
        labels[word] if word is not None and word != last else IGNORED
        for word, last in zip(word_ids, before, strict=True)
    ]
