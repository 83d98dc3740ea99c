"""Span corruption: spans of a text are taken out, and a decoder writes them. arXiv:1910.10683, section 3.1.4"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlplatform.data.collate import IGNORED, Collator, Row, stack
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Fraction, PositiveFloat, block
from mlplatform.tasks.task import Batch, Task, count_targets, loss_and_perplexity

Ids = NDArray[np.int64]


@block("task/span_corruption")
class SpanCorruption(Task):
    """T5's pretraining. Each span that is taken out leaves a sentinel token of its own; the decoder writes every
    sentinel and what stood in its place. Metrics: loss, perplexity.

    Args:
        share: of the tokens that are taken out.
        span: tokens a span has on average.
    """

    attention = "full"
    head_task = "causal_lm"
    assembly = "encoder_decoder"
    layouts = ("padded",)

    def __init__(self, model: nn.Module, *, share: Fraction = 0.15, span: PositiveFloat = 3.0) -> None:
        if share == 0:
            raise SpecError("share=0 takes nothing out; it must be between 0 and 1")
        if span < 1:
            raise SpecError(f"span={span}: a span has at least one token")
        super().__init__(model)
        self.options = (share, span)

    def collator(self, tokenizer: Any, length: int) -> Collator:
        return Corruption(tokenizer, length, *self.options)

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return loss_and_perplexity(sums)


class Corruption:
    """The collator of span corruption: `input_ids` and `attention_mask` for the encoder, `labels` for the decoder.

    Both end with the tokenizer's end token and have a length of their own; what is taken out depends on (seed, epoch,
    sample number) alone.

    Args:
        length: tokens of a row at most. Encoder and labels stay within it: there are no more spans than tokens left.

    Raises:
        DataError: the tokenizer has too few sentinels.
    """

    overlap = 0
    labels_apart = True

    def __init__(self, tokenizer: Any, length: int, share: float, span: float) -> None:
        self.filler, self.end, self.share, self.span = tokenizer.filler, tokenizer.frame[1], share, span
        self.sentinels = np.asarray(sentinels(tokenizer), dtype=np.int64)
        _, spans = sizes(length - 2, share, span)
        if not len(self.sentinels):
            raise DataError(
                f"{tokenizer.source}: span_corruption needs sentinel tokens <extra_id_0>, <extra_id_1>, ...; "
                "set tokenizer=sentinel_bpe, or give a T5 tokenizer"
            )
        if spans > len(self.sentinels):
            told = f"{length} tokens lose {spans} spans, and it has {len(self.sentinels)} sentinels"
            raise DataError(f"{tokenizer.source}: {told}; set batch.length lower or task.span higher")

    def __call__(self, rows: list[Row]) -> Batch:
        parts = [self.corrupted(row) for row in rows]
        encoder = [
            Row({"input_ids": ids, "attention_mask": np.ones_like(ids)}, row.seed, row.epoch, row.number)
            for row, (ids, _) in zip(rows, parts, strict=True)
        ]
        longest = max(1, max(len(labels) for _, labels in parts))
        pads = [np.pad(labels, (0, longest - len(labels)), constant_values=IGNORED) for _, labels in parts]
        return {**stack(encoder, self.filler), "labels": torch.from_numpy(np.stack(pads))}

    def corrupted(self, row: Row) -> tuple[Ids, Ids]:
        """Return (encoder tokens, labels) of a row; of one without text, the end token and no label."""
        ids = row.arrays["input_ids"][row.arrays["attention_mask"] > 0][1:-1]  # without its frame
        if len(ids) == 0:
            return np.asarray([self.end]), ids
        gone = chosen_spans(len(ids), self.share, self.span, row.generator())
        starts = np.flatnonzero(np.diff(gone.astype(np.int8), prepend=0) == 1)
        marks = self.sentinels[: len(starts)]
        left = ids.copy()
        left[starts] = marks
        begins = np.isin(np.arange(len(ids)), starts)
        written = np.insert(ids, starts, marks)[np.insert(gone, starts, True)]
        return np.append(left[~gone | begins], self.end), np.append(written, self.end)


def sentinels(tokenizer: Any) -> list[int]:
    """Return the numbers of `<extra_id_0>`, `<extra_id_1>`, ... as far as the tokenizer has them without a gap."""
    found: list[int] = []
    while (number := tokenizer.backend.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(number)
    return found


def sizes(length: int, share: float, span: float) -> tuple[int, int]:
    """Return how many of `length` tokens are taken out, in how many spans; something is, and something is left."""
    if length < 2:
        return length, length
    taken = min(max(round(length * share), 1), length - 1)
    return taken, max(1, min(round(taken / span), length - taken))


def chosen_spans(length: int, share: float, span: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return which tokens are taken out: spans of random lengths that don't touch.

    They may begin and end anywhere; T5's own last one is always at the end, which would be all a short text teaches.
    """
    taken, spans = sizes(length, share, span)
    if length < 2:
        return np.ones(length, dtype=bool)
    gaps = _parts(length - taken + 2, spans + 1, random)
    gaps[[0, -1]] -= 1  # before the first and after the last there may be nothing
    lengths = np.zeros(2 * spans + 1, dtype=np.int64)
    lengths[::2], lengths[1::2] = gaps, _parts(taken, spans, random)
    return np.repeat(np.arange(2 * spans + 1) % 2 == 1, lengths)


def _parts(total: int, count: int, random: np.random.Generator) -> Ids:
    """Cut `total` into `count` parts of at least one, every way as likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)
