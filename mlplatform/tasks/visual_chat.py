"""Learning to answer from conversations with images in them: the loss is over what the assistant says.

arXiv:2304.08485
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Picture, Turns, Values, shown
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import DataError
from mlplatform.processors.conversations import conversation, template_of
from mlplatform.registry import Positive, block
from mlplatform.tasks.chat import kept, learned
from mlplatform.tasks.task import Batch
from mlplatform.tasks.visual_writing import Look, VisualWriting

Parts = list[dict[str, Any]]


@block("task/visual_chat")
class VisualChat(VisualWriting):
    """Fields: `messages`, turns with a `role` and a `content`; and perhaps `images`, one or several in their order.

    A content is a text or a list of parts, {"type": "text", "text": ...} and {"type": "image"}. Where no part is an
    image, the images stand at the beginning of the user's first turn, or wherever its text spells the model's image
    token. What the assistant says is learned, its ends too. Metrics: loss, perplexity. Predictions: the last answer.

    Args:
        answer_length: tokens of a predicted answer at most.
    """

    def __init__(self, model: nn.Module, *, answer_length: Positive = 64) -> None:
        super().__init__(model)
        self.answer_length = answer_length

    def reads(self) -> Reads:
        return Reads({"messages": PicturedTurns(), "images": Pictures()}, frozenset({"images"}), images_have_places)

    def examples(self, tools: Tools) -> PicturedAnswers:
        tokenizer, processor = (tools.need(what, self.kind) for what in ("tokenizer", "processor"))
        return PicturedAnswers(tokenizer, Look.of(self.model, tokenizer, processor), tools.length)

    def prepare_measures(self, tools: Tools) -> None:
        self.check_vocabulary(tools.need("tokenizer", self.kind))

    def predictions(self, batch: Batch, out: Any) -> list[dict[str, Any]]:
        return [{"answer": text} for text in self.written(batch, out)]


class PicturedTurns(Turns):
    """A conversation whose contents are texts, or lists of texts and places of images."""

    name = "pictured turns"

    def clean(self, value: Any, folder: Path) -> list[dict[str, Any]]:
        plain = (
            [self._plain(turn, number) for number, turn in enumerate(value, 1)] if isinstance(value, list) else value
        )
        super().clean(plain, folder)
        return [dict(turn) for turn in value]

    @staticmethod
    def _plain(turn: Any, number: int) -> Any:
        """Return a turn with its parts as one text. Raises ValueError for a part that is neither text nor image."""
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
            return turn
        for part in turn["content"]:
            text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            if not text and not is_image(part):
                told = f"has a turn {number} with a part that is no text and no image: {shown(part)}"
                raise ValueError(f'{told}; parts are {{"type": "text", "text": ...}} and {{"type": "image"}}')
        return {**turn, "content": "".join(part.get("text", "image") for part in turn["content"])}

    def texts(self, value: Any) -> list[str]:
        return [text for turn in value for text in texts_of(turn["content"])]


class Pictures(Picture):
    """An image, or a list of images."""

    name = "images"

    def clean(self, value: Any, folder: Path) -> list[Any]:
        return [super(Pictures, self).clean(one, folder) for one in (value if isinstance(value, list) else [value])]

    def verify(self, value: Any) -> None:
        for one in value:
            super().verify(one)

    def content(self, value: Any) -> bytes:
        return b"".join(super(Pictures, self).content(one) for one in value)


def is_image(part: Any) -> bool:
    """Whether a part of a content is the place of an image."""
    return isinstance(part, dict) and part.get("type") == "image"


def texts_of(content: str | Parts) -> list[str]:
    """Return the texts of a content."""
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def places_of(messages: Parts) -> int:
    """Return how many parts of a conversation are places of images."""
    return sum(is_image(part) for turn in messages if isinstance(turn["content"], list) for part in turn["content"])


def images_have_places(values: Values) -> None:
    """Raise ValueError when the parts of a conversation have not one place for each image."""
    places, given = places_of(values["messages"]), len(values.get("images") or [])
    if places != given and (places or not given):
        raise ValueError(f"'messages' has {places} parts for images, and the row has {given} images")


def placed(messages: Parts, count: int, place: str) -> Parts:
    """Return a conversation with places for its images: those it has, or before the user's first text."""
    said = any(place in text for turn in messages for text in texts_of(turn["content"]))
    first = next((number for number, turn in enumerate(messages) if turn["role"] == "user"), None)
    if not count or said or places_of(messages) or first is None:
        return messages
    content = messages[first]["content"]
    rest = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [
        {**turn, "content": [*([{"type": "image"}] * count), *rest]} if number == first else turn
        for number, turn in enumerate(messages)
    ]


class PicturedAnswers:
    """Rows of a conversation, whose `labels` are -100 but for what the assistant says, and of its images.

    A conversation ends with the assistant's last turn, or where it is too long with the last one that fits.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, look: Look, length: int) -> None:
        self.tokenizer, self.look, self.length = tokenizer, look, length
        template_of(tokenizer)

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        images = record.get("images") or []
        try:
            ids, spans = conversation(self.tokenizer, placed(record["messages"], len(images), self.look.place))
        except DataError as error:
            raise DataError(f"{record.place}: {error}") from None
        if (places := ids.count(self.look.token)) != len(images):  # type: ignore[arg-type]
            told = f"the conversation has {places} places for images ({self.look.place}), and the row {len(images)}"
            raise DataError(f"{record.place}: {told} images; the chat template must write one for each")
        ids, spans = self.look.spread(ids, spans)
        first, last = kept(spans, spans[-1][1], self.length)
        if first or last not in [end for _, end in spans]:
            told = f"its first answer ends at token {spans[0][1]}, and batch.length={self.length}"
            raise DataError(f"{record.place}: {told}; raise it, or leave the row out with a step of length")
        there = ids[:last].count(self.look.token) // self.look.vectors  # type: ignore[arg-type]
        pixels = [self.look.pixels(image, record.place) for image in images[:there]]
        return {
            **learned(ids, spans, first, last),
            "pixel_values": np.stack(pixels) if pixels else np.empty((0, *self.look.shape), np.float32),
        }

    def __call__(self, rows: list[Row]) -> Batch:
        texts = [replace(row, arrays={n: a for n, a in row.arrays.items() if n != "pixel_values"}) for row in rows]
        pixels = torch.from_numpy(np.concatenate([row.arrays["pixel_values"] for row in rows]))
        batch = stacked(texts, {"input_ids": self.tokenizer.filler, "labels": IGNORED})
        return {**batch, "pixel_values": pixels} if len(pixels) else batch
