"""Transcripts by connectionist temporal classification (Graves et al., 2006): wav2vec 2.0, HuBERT. arXiv:2006.11477"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Words
from mlplatform.data.packing import Arrays
from mlplatform.data.recordings import Heard, Recording, Spelled
from mlplatform.data.records import Reads, Record
from mlplatform.data.sound_augment import SoundAugment
from mlplatform.errors import SpecError
from mlplatform.registry import NonNegativeFloat, PositiveFloat, Spec, block
from mlplatform.tasks.record_task import RecordTask
from mlplatform.tasks.task import Batch
from mlplatform.tasks.transcripts import of_transcripts, spelled


@block("task/ctc")
class SpeechCTC(RecordTask):
    """Fields: `audio` and `text`, its transcript. The loss is over transcripts, each of which counts the same.

    Metrics: word and character error rate of what the likeliest label of each frame spells.

    Args:
        shortest, longest: seconds of a recording; one of another length is a bad row. null: no limit.
        augment: changes of a training recording, in order: `[{kind: pace}, {kind: noise}]`.
    """

    reads_key = "input_values"
    monitor = "validation/wer"

    def __init__(
        self,
        model: nn.Module,
        *,
        shortest: NonNegativeFloat = 0.0,
        longest: PositiveFloat | None = None,
        augment: list[Annotated[Spec, "sound_augment"]] = [],  # noqa: B006  (read as data, never changed)
    ) -> None:
        super().__init__(model)
        self.limits = (shortest, longest)
        self.augment: list[SoundAugment] = [change.build() for change in augment]

    def reads(self) -> Reads:
        convs: Any = self.model.trunk.input.front.convs  # type: ignore[union-attr]
        shapes = tuple((conv.kernel_size[0], conv.stride[0]) for conv in convs)
        letters = None
        if self.tools.tokenizer is not None:
            from mlplatform.processors.characters import letters_of

            letters = letters_of(self.tools.tokenizer)
        rate = self.tools.processor.settings["sampling_rate"] if self.tools.processor else 16000
        return Reads({"audio": Recording(*self.limits), "text": Words()}, check=Spelled(shapes, rate, letters))

    def examples(self, tools: Tools) -> Spellings:
        return Spellings(tools.need("processor", self.kind), tools.need("tokenizer", self.kind), self.augment)

    def prepare_measures(self, tools: Tools) -> None:
        tokenizer, head = tools.need("tokenizer", self.kind), self.model.head
        count: int = head.out.out_features  # type: ignore[union-attr,assignment]
        if tokenizer.vocab_size > count:
            told = f"the head has {count} labels, and the vocabulary {tokenizer.vocab_size} characters"
            raise SpecError(f"{told}; set model.heads.ctc.labels={tokenizer.vocab_size}")
        if tokenizer.pad != head.blank:  # type: ignore[union-attr]
            told = f"the blank is label {head.blank} of the head, and {tokenizer.pad} in the vocabulary"  # type: ignore[union-attr]
            raise SpecError(f"{told} (its pad token); set model.heads.ctc.blank={tokenizer.pad}")
        self.measures = dict(of_transcripts())

    def targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def learned(self, batch: Batch) -> Output:
        return self._counted(batch, super().learned(batch))

    def scored(self, batch: Batch) -> Output:
        return self._counted(batch, super().scored(batch))

    def _counted(self, batch: Batch, out: Output) -> Output:
        """Count transcripts, as `targets` does: HF's `sum` would have the loss depend on the size of the batch."""
        out.loss_count = self.targets(batch)
        return out

    def observe(self, batch: Batch, out: Output) -> None:
        said = self.transcripts(batch, out)
        wanted = [self.held_out[number]["text"] for number in batch["numbers"].tolist()]
        for measure in self.measures.values():
            measure.update(said, wanted)

    def transcripts(self, batch: Batch, out: Output) -> list[str]:
        """Return what the model hears in each row."""
        mask, every = batch.get("attention_mask"), out.logits.shape[1]
        front: Any = self.model.trunk.input.front  # type: ignore[union-attr]
        frames = [every] * len(out.logits) if mask is None else front.frames(mask.sum(-1)).tolist()
        blank: int = self.model.head.blank  # type: ignore[union-attr,assignment]
        return [self.tools.tokenizer.decode(row) for row in spelled(out.logits, frames, blank)]

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        return [{"text": text} for text in self.transcripts(batch, out)]


class Spellings:
    """Rows of samples and of the characters of their transcripts."""

    def __init__(self, processor: Any, tokenizer: Any, augment: Sequence[SoundAugment] = ()) -> None:
        self.heard, self.tokenizer = Heard(processor, augment), tokenizer

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        labels = np.asarray(self.tokenizer.plain([record["text"]])[0])
        return {**self.heard(record["audio"], random), "labels": labels}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {**Heard.fillers, "labels": IGNORED})
