"""Transcripts written by a decoder about a recording: Whisper. arXiv:2212.04356"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Words
from mlplatform.data.packing import Arrays
from mlplatform.data.recordings import Heard, Recording
from mlplatform.data.records import Reads, Record
from mlplatform.errors import DataError, SpecError, did_you_mean
from mlplatform.generation.writing import write
from mlplatform.registry import NonNegativeFloat, Positive, Text, block
from mlplatform.tasks.record_task import RecordTask
from mlplatform.tasks.task import Batch, count_targets
from mlplatform.tasks.transcripts import of_transcripts, plain


@block("task/speech_seq2seq")
class SpeechSeq2Seq(RecordTask):
    """Fields: `audio` and `text`, its transcript. The loss is over the tokens the decoder writes, its end among them.

    Metrics: word and character error rate of what it writes about held-out recordings.

    Args:
        prefix: what stands before a transcript, after the decoder's start token: `["<|en|>", "<|transcribe|>",
            "<|notimestamps|>"]` for a Whisper of many languages; null takes what the tokenizer's own template puts.
        target_length: tokens of a transcript at most, the prefix and the end among them.
        words_only: score words alone: without upper case and punctuation, which transcripts often lack.
        shortest: seconds of a recording at least; the longest one is as long as the processor hears.
    """

    reads_key = "input_features"
    head_task = "causal_lm"
    assembly = "encoder_decoder"
    monitor = "validation/wer"

    def __init__(
        self,
        model: nn.Module,
        *,
        prefix: list[Text] | None = None,
        target_length: Positive = 128,
        words_only: bool = True,
        shortest: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(model)
        most: int = model.decoder.context_length  # type: ignore[union-attr,assignment]
        if target_length > most:
            raise SpecError(f"task.target_length={target_length} is more than model.decoder.context_length={most}")
        self.prefix, self.length, self.words_only, self.shortest = prefix, target_length, words_only, shortest

    def reads(self) -> Reads:
        longest = self.tools.processor.settings.get("chunk_length") if self.tools.processor else None
        return Reads({"audio": Recording(self.shortest, longest), "text": Words()})

    def examples(self, tools: Tools) -> WrittenSpeech:
        tokenizer = tools.need("tokenizer", self.kind)
        prefix, end = self._frame(tokenizer)
        return WrittenSpeech(tools.need("processor", self.kind), tokenizer, prefix, end, self.length)

    def _frame(self, tokenizer: Any) -> tuple[list[int], int]:
        """Return the tokens before a transcript and the one that ends it."""
        if tokenizer.eos is None:
            raise DataError(f"{tokenizer.source} names no eos token, which ends a transcript; set tokenizer.eos")
        if self.prefix is None:
            start: Any = self.model.start_token
            template = tokenizer.encode("")
            return [token for token in template if token not in (start, tokenizer.eos)], tokenizer.eos
        known = tokenizer.backend.get_vocab(with_added_tokens=True)
        for token in self.prefix:
            if token not in known:
                raise DataError(f"{tokenizer.source} has no token '{token}'{did_you_mean(token, known)} (task.prefix)")
        return [known[token] for token in self.prefix], tokenizer.eos

    def prepare_measures(self, tools: Tools) -> None:
        rows: int = self.model.decoder.input.table.num_embeddings  # type: ignore[union-attr,assignment]
        if (size := tools.need("tokenizer", self.kind).vocab_size) > rows:
            told = f"the tokenizer has {size} tokens and the decoder's table {rows} rows"
            raise SpecError(f"{told}; set model.decoder.input.vocab={size}")
        self.measures = dict(of_transcripts())

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"])

    def scored(self, batch: Batch) -> Output:
        """Return the loss and the encoder's output, which the decoder writes about."""
        return self.model(**self.inputs(batch), logits=False)

    def observe(self, batch: Batch, out: Output) -> None:
        wanted = [self.held_out[number]["text"] for number in batch["numbers"].tolist()]
        said = self.transcripts(batch, out)
        if self.words_only:
            said, wanted = [plain(text) for text in said], [plain(text) for text in wanted]
        for measure in self.measures.values():
            measure.update(said, wanted)

    def transcripts(self, batch: Batch, out: Output) -> list[str]:
        """Return what the model writes about each row; what was written once is kept in `out`."""
        if out.written is None:
            prefix, end = self._frame(self.tools.tokenizer)
            inputs = {name: tensor for name, tensor in self.inputs(batch).items() if name != "labels"}
            new = write(self.model, inputs, ends={end}, max_new_tokens=self.length, begin=prefix)
            out.written = [self.tools.tokenizer.decode(row).strip() for row in new]
        return out.written

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        return [{"text": text} for text in self.transcripts(batch, out)]


class WrittenSpeech:
    """Rows of features, and of the tokens the decoder writes: a prefix, the transcript, the end."""

    def __init__(self, processor: Any, tokenizer: Any, prefix: list[int], end: int, length: int) -> None:
        self.heard, self.tokenizer = Heard(processor), tokenizer
        self.prefix, self.end, self.length = prefix, end, length

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        tokens = [*self.prefix, *self.tokenizer.plain([record["text"]])[0], self.end]
        if len(tokens) > self.length:
            told = f"its transcript takes {len(tokens)} tokens, and task.target_length={self.length}"
            raise DataError(f"{record.place}: {told}; raise it, or leave the row out with a step of length")
        return {**self.heard(record["audio"]), "labels": np.asarray(tokens)}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"labels": IGNORED})
