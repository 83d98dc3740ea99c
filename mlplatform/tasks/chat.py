"""Learning to answer from conversations: the loss is over what the assistant says. arXiv:2203.02155, section 3.5"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Turns
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import DataError
from mlplatform.generation.generate import generate_tokens
from mlplatform.processors.conversations import Spans, conversation, opening, template_of
from mlplatform.registry import Positive, block
from mlplatform.tasks.record_task import RecordTask
from mlplatform.tasks.task import Batch, count_targets, loss_and_perplexity


@block("task/chat")
class Chat(RecordTask):
    """Field: `messages`, a list of turns with a `role` and a `content`. Those of the assistant are learned, ends too.

    The tokenizer's chat template writes them as a text. Metrics: loss, perplexity. Predictions: an answer to what
    comes before the last turn of the assistant's.

    Args:
        answer_length: tokens of a predicted answer at most.
    """

    attention = "causal"
    head_task = "causal_lm"

    def __init__(self, model: nn.Module, *, answer_length: Positive = 64) -> None:
        super().__init__(model)
        self.answer_length = answer_length

    def reads(self) -> Reads:
        return Reads({"messages": Turns()})

    def examples(self, tools: Tools) -> Answers:
        return Answers(tools.need("tokenizer", self.kind), tools.length)

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"][:, 1:])

    def scored(self, batch: Batch) -> Output:
        return self.model(**self.inputs(batch), logits=False)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return loss_and_perplexity(sums)

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        tokenizer = self.tools.tokenizer
        chats = [self.held_out[number]["messages"] for number in batch["numbers"].tolist()]
        room = max(1, self.model.trunk.context_length - self.answer_length)  # type: ignore[operator]
        prompts = [opening(tokenizer, chat[: last_answer(chat)])[-room:] for chat in chats]
        ends = {token for chat in chats for token in turn_ends(tokenizer, chat)}
        new = generate_tokens(self.model, prompts, max_new_tokens=self.answer_length, ends=ends)
        return [{"answer": tokenizer.decode(row).strip()} for row in new]


class Answers:
    """Rows of `input_ids`, whose `labels` are -100 but for what the assistant says.

    A conversation that is too long ends with the last turn of the assistant's that fits. Where not even the first one
    does, what stands before it is cut at its beginning, to half of a row at most, and then the turn at its end.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        template_of(tokenizer)

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        try:
            ids, spans = conversation(self.tokenizer, record["messages"])
        except DataError as error:
            raise DataError(f"{record.place}: {error}") from None
        return learned(ids, spans, *kept(spans, len(ids), self.length))

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": self.tokenizer.filler, "labels": IGNORED})


def learned(ids: list[int], spans: Spans, first: int, last: int) -> Arrays:
    """Return the tokens first..last-1 of a conversation, with `labels` where the assistant speaks."""
    labels = np.full(len(ids), IGNORED)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return {"input_ids": np.asarray(ids)[first:last], "labels": labels[first:last]}


def kept(spans: Spans, size: int, length: int) -> tuple[int, int]:
    """Return (first, last + 1) of the tokens of a conversation of `size` tokens that go into a row."""
    if size <= length:
        return 0, size
    if whole := [end for _, end in spans if end <= length]:
        return 0, max(whole)
    start, end = spans[0]
    first = max(0, start - max(length - (end - start), length // 2))
    return first, min(first + length, end)


def last_answer(chat: list[dict[str, Any]]) -> int:
    """Return the number of the assistant's last turn."""
    return max(number for number, turn in enumerate(chat) if turn["role"] == "assistant")


def turn_ends(tokenizer: Any, chat: list[dict[str, Any]]) -> set[int]:
    """Return the special tokens the template ends the assistant's turns with, and the tokenizer's end of a text."""
    ids, spans = conversation(tokenizer, chat)
    special = {number for number, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    return {tokenizer.frame[1]} | (special & {token for start, end in spans for token in ids[start:end]})
