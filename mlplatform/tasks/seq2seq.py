"""Sequence to sequence: a text is read and another one written. Summaries, translations. arXiv:1910.10683"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Words
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import DataError
from mlplatform.generation.writing import write
from mlplatform.registry import Natural, Positive, block
from mlplatform.tasks.task import Batch, count_targets
from mlplatform.tasks.text_scores import of_texts
from mlplatform.tasks.written import Written


@block("task/seq2seq")
class Seq2Seq(Written):
    """Fields: `source` and `target`, two texts. The loss is over the tokens of the target, its end among them.

    Metrics: loss and perplexity of all held-out targets, and scores of what is written about the first of them.

    Args:
        prefix: stands before every source: `"summarize: "`.
        target_length: tokens of a target at most; null for those of a row, `batch.length`.
        metrics: `rouge` (ROUGE-L), `bleu` and `chrf`, of the texts written.
        sampled: how many held-out rows are written about in validation; the first ones.
        beams: 1 writes greedily, more search for the likeliest text.
    """

    assembly = "encoder_decoder"
    layouts = ("padded",)
    answer_field = "target"

    def __init__(
        self,
        model: nn.Module,
        *,
        prefix: str = "",
        target_length: Positive | None = None,
        metrics: list[Literal["rouge", "bleu", "chrf"]] = ["rouge"],  # noqa: B006  (read as data, never changed)
        sampled: Natural = 64,
        beams: Positive = 1,
    ) -> None:
        super().__init__(model)
        self.prefix, self.target_length, self.scores = prefix, target_length, metrics
        self.sampled, self.beams = sampled, beams
        of_texts(metrics)  # a package that is missing is told before anything is read

    def reads(self) -> Reads:
        return Reads({"source": Words(), "target": Words()})

    def examples(self, tools: Tools) -> TextPairs:
        tokenizer = tools.need("tokenizer", self.kind)
        return TextPairs(tokenizer, self.prefix, tools.length, self.target_length or tools.length)

    def prepare_measures(self, tools: Tools) -> None:
        self.measures = of_texts(self.scores) if self.sampled else {}

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"])

    def written(self, batch: Batch, out: Output) -> list[str]:
        if out.written is None:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            tokenizer = self.tools.tokenizer
            most = self.target_length or self.tools.length
            new = write(self.model, inputs, ends={tokenizer.frame[1]}, max_new_tokens=most, beams=self.beams)
            out.written = [tokenizer.decode(row).strip() for row in new]
        return out.written


class TextPairs:
    """Rows of `input_ids` for the encoder and `labels` for the decoder, each framed as the tokenizer frames a text.

    Raises:
        DataError: the tokenizer puts no end after a text, so nothing would say where a target ends.
    """

    labels_apart = True

    def __init__(self, tokenizer: Any, prefix: str, length: int, target_length: int) -> None:
        self.tokenizer, self.prefix, self.lengths = tokenizer, prefix, (length, target_length)
        if tokenizer.encode("a")[-1] != tokenizer.frame[1]:
            told = "puts no end token after a text, which seq2seq needs to know where a target ends"
            raise DataError(f"{tokenizer.source} {told}; set tokenizer=sentinel_bpe, or give a T5 tokenizer")

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        texts = (self.prefix + record["source"], record["target"])
        cut = [self.tokenizer.cut(text, None, length).ids for text, length in zip(texts, self.lengths, strict=True)]
        return {"input_ids": np.asarray(cut[0]), "labels": np.asarray(cut[1])}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": self.tokenizer.filler, "labels": IGNORED})
