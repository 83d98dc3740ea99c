"""What tasks share whose model writes about images: how it reads them, and rows of a prompt and an answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Record
from mlplatform.data.steps import Pattern
from mlplatform.errors import DataError, SpecError, listing
from mlplatform.generation.generate import generate_tokens
from mlplatform.generation.writing import write
from mlplatform.models import build
from mlplatform.processors.conversations import Spans
from mlplatform.processors.tokenizer import IMAGE
from mlplatform.registry import kinds
from mlplatform.tasks.task import Batch, count_targets
from mlplatform.tasks.text_scores import references
from mlplatform.tasks.ways import MODELS, TASKS, Way, fitting, way_of
from mlplatform.tasks.written import Written

log = logging.getLogger(__name__)
MEASURE = 64
"""The side of the image in pixels by which it is seen what a processor makes of one."""


class VisualWriting(Written):
    """A task whose model reads images and writes.

    A subclass says `reads` and `examples`, and in `answer_length` how many tokens an answer has at most.
    """

    answer_length: int
    beams: int = 1

    def check_model(self, model: nn.Module) -> None:
        way = way_of(model)
        if way is not None and self.kind in TASKS[way]:
            return
        told = f"task={self.kind} does not fit this {getattr(model, 'kind', 'model')}"
        if way is not None:
            raise SpecError(f"{told}: {fitting(way)}")
        if hasattr(model, "logit_scale"):
            raise SpecError(f"{told}, which compares and does not write: contrastive fits it")
        known = " or ".join(f"model={MODELS[one]}" for one in TASKS if self.kind in TASKS[one])
        own = getattr(getattr(model, "head", None), "task", None)
        there = f"; {own} fits this one" if f"task/{own}" in kinds() else ""
        raise SpecError(f"{told}: it needs a model that reads images and writes, such as {known}{there}")

    @property
    def way(self) -> Way:
        """How the model reads images."""
        way = way_of(self.model)
        assert way is not None
        return way

    def check_vocabulary(self, tokenizer: Any) -> None:
        """Raise SpecError when the tokenizer has tokens the model's table has no row for."""
        rows: int = self.model.trunk.input.table.num_embeddings  # type: ignore[union-attr,assignment]
        if (size := tokenizer.vocab_size) > rows:
            paths = {"beside": "text.trunk", "asked": "text.encoder", "within": "language.trunk"}
            told = f"the tokenizer has {size} tokens and the model's table {rows} rows"
            raise SpecError(f"{told}; set model.{paths[self.way]}.input.vocab={size}")

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"][:, 1:])

    def written(self, batch: Batch, out: Output) -> list[str]:
        if out.written is None:
            tokenizer = self.tools.tokenizer
            options: dict[str, Any] = {
                "ends": ends_of(tokenizer, batch["labels"]),
                "max_new_tokens": self.answer_length,
            }
            if self.way == "asked":
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                inputs["encoder_hidden_states"] = out.image_embeds
                begin = batch["labels"][0, :1].tolist()
                new = write(self.model.text, inputs, begin=begin, beams=self.beams, **options)  # type: ignore[arg-type]
            else:
                key = "image_embeds" if self.way == "beside" else "pixel_values"
                beside = {key: out[key] if key in out else batch[key]} if key in out or key in batch else {}
                new = generate_tokens(self.model, prompts(batch), beside=beside, **options)
            out.written = [tokenizer.decode(row).strip() for row in new]
        return out.written


class Prompted(VisualWriting):
    """A task whose rows are an image, a prompt and an answer.

    Args:
        fields: what the prompt may name. begin: the token a text begins with, None for the tokenizer's own.
    """

    fields: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, prompt: str, answer_length: int, begin: int | None) -> None:
        super().__init__(model)
        if begin is not None and self.way == "within":
            raise SpecError(
                f"begin={begin} is for models that read the image beside the text; this one's text begins "
                "as its tokenizer says"
            )
        self.prompt, self.answer_length, self.begin = prompt_of(prompt, self.fields, self.way), answer_length, begin

    def examples(self, tools: Tools) -> PromptedAnswers:
        tokenizer, processor = (tools.need(what, self.kind) for what in ("tokenizer", "processor"))
        look = Look.of(self.model, tokenizer, processor)
        lengths = tools.length, self.answer_length
        return PromptedAnswers(self.way, tokenizer, look, self.prompt, self.answer_field, *lengths, self.begin)


def ends_of(tokenizer: Any, labels: Tensor) -> set[int]:
    """Return the tokens that end an answer: the special ones that are learned, and the tokenizer's end of a text."""
    special = {number for number, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    return {tokenizer.frame[1]} | (special & set(labels.unique().tolist()))


def prompts(batch: Batch) -> list[list[int]]:
    """Return the tokens of each row before its last answer: before the last stretch of labels."""
    found = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        last = max(place for place, label in enumerate(labels) if label != IGNORED)
        while last and labels[last - 1] != IGNORED:
            last -= 1
        found.append(ids[:last])
    return found


@dataclass(frozen=True)
class Look:
    """What a processor makes of an image, and how a model's text has it.

    Args:
        processor: what makes pixels. shape: of the pixels of one image (channels, height, width).
        token: the one that stands for an image within a text, None where the image is read beside it.
        place: how that token is spelled. vectors: how many tokens an image becomes.
    """

    processor: Any
    shape: tuple[int, ...]
    token: int | None = None
    place: str = ""
    vectors: int = 0

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, tokenizer: Any, processor: Any) -> Look:
        """Return how a model looks at what a processor makes.

        Raises:
            DataError: the processor's images are not what the model reads. SpecError: no token for an image's place.
        """
        pixels = processor(np.zeros((MEASURE, MEASURE, 3), np.uint8))["pixel_values"].to("meta")
        shell: Any = build(model.spec, device="meta").eval()
        shape = tuple(pixels.shape[1:])
        if model.kind != "vision_language":
            shell.look(pixels, None)
            return cls(processor, shape)
        backend, token = tokenizer.backend, model.image_token
        if token not in backend.get_added_tokens_decoder():
            known = backend.token_to_id(IMAGE)
            told = f"model.image_token={token} is no special token of {tokenizer.source}"
            raise SpecError(f"{told}; " + ("set tokenizer=visual_bpe" if known is None else f"{IMAGE} is {known}"))
        return cls(processor, shape, token, backend.id_to_token(token), shell.image_features(pixels).shape[1])

    def pixels(self, image: Any, place: str) -> NDArray[np.float32]:
        """Return an image's pixels. Raises DataError where they have another shape; `place` says where it is."""
        found = self.processor(image)["pixel_values"][0].numpy()
        if found.shape != self.shape:
            told = f"the image ends up {found.shape[1]}x{found.shape[2]}, and a batch's have one size"
            raise DataError(f"{place}: {told}; give processor.config.size a height and a width")
        return found

    def spread(self, ids: Sequence[int], spans: Spans = []) -> tuple[list[int], Spans]:  # noqa: B006  (only read)
        """Return tokens, and stretches of them, with as many tokens at each image's place as it has vectors."""
        counts = [self.vectors if token == self.token else 1 for token in ids]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(int).tolist()
        return np.repeat(list(ids), counts).astype(int).tolist(), [(starts[a], starts[b]) for a, b in spans]


class PromptedAnswers:
    """Rows of an image, a prompt, and the answer that is learned; of several answers an epoch draws one.

    Args:
        way: how the model reads the image. prompt: what stands before an answer, with fields of the record in braces,
            and {image} where an image stands within the text, at its beginning otherwise.
        field: that holds the answer. length, answer_length: tokens of a row and of an answer, at most.
        begin: the token a text begins with, None for the tokenizer's own.
    """

    def __init__(
        self, way: Way, tokenizer: Any, look: Look, prompt: Pattern, field: str, length: int, answer_length: int,
        begin: int | None,
    ) -> None:  # fmt: skip
        self.way, self.tokenizer, self.look, self.prompt = way, tokenizer, look, prompt
        self.field, self.length, self.answer_length = field, length, answer_length
        self.begin = tokenizer.frame[0] if begin is None else begin
        self.labels_apart, self.told = way == "asked", False

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        right = references(record[self.field])
        answer = right[0] if random is None else right[int(random.integers(len(right)))]
        said = self._said(answer, record.place)
        pixels = self.look.pixels(record["image"], record.place)
        prompt = self._prompt(record)
        if self.way == "asked":
            ids, labels = prompt, [self.begin, *said]
        else:
            room = self.length - len(prompt)
            said = said if len(said) <= room else [*said[: room - 1], said[-1]]
            ids, labels = [*prompt, *said], [IGNORED] * len(prompt) + said
        return {"input_ids": np.asarray(ids), "labels": np.asarray(labels), "pixel_values": pixels}

    def _said(self, answer: str, place: str) -> list[int]:
        """Return an answer's tokens with its end. Of the first that is cut a warning tells."""
        ids, most = self.tokenizer.plain([answer])[0], self.answer_length - 1
        if len(ids) > most and not self.told:
            self.told = True
            told = f"its answer has {len(ids) + 1} tokens with its end, of which {self.answer_length} are learned"
            log.warning("%s: %s; set task.answer_length=%d or more", place, told, len(ids) + 1)
        return [*ids[:most], self.tokenizer.frame[1]]

    def _prompt(self, record: Record) -> list[int]:
        """Return the tokens before the answer; those of a question that is asked are cut, others can't be."""
        text = self.prompt.fill({**record.values, "image": self.look.place})
        if self.way == "asked":
            return self.tokenizer.cut(text, None, self.length).ids
        if self.way == "beside":
            ids = [self.begin, *self.tokenizer.encode(text, specials=False)]
        else:
            ids = self._placed(text, record.place)
        if len(ids) > self.length - 2:
            told = f"the image and the text before the answer take {len(ids)} tokens, and batch.length={self.length}"
            raise DataError(f"{record.place}: {told}; raise it, or leave the row out with a step of length")
        return ids

    def _placed(self, text: str, place: str) -> list[int]:
        """Return the tokens of a text with an image in it, as the tokenizer begins a text."""
        whole = text if self.look.place in text else self.look.place + text
        ids = self.tokenizer.encode(whole)
        if ids and ids[-1] == self.tokenizer.frame[1]:  # a template that also ends a text
            ids = ids[:-1]
        if ids.count(self.look.token) != 1:
            raise DataError(f"{place}: its text spells out {self.look.place}, the place of an image")
        return self.look.spread(ids)[0]

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": self.tokenizer.filler, "labels": IGNORED})


def prompt_of(text: str, fields: Sequence[str], way: Way) -> Pattern:
    """Return a prompt with fields in braces. Raises SpecError for a field the task has not."""
    pattern = Pattern(text, "task.prompt")
    named = [name for _, name in pattern.parts if name]
    allowed = [*fields, "image"] if way == "within" else list(fields)
    if strange := [name for name in named if name not in allowed]:
        more = "; this model reads the image beside the text" if strange[0] == "image" else ""
        raise SpecError(
            f"prompt={text!r} names {{{strange[0]}}}; braces may hold {listing(allowed) or 'nothing'}{more}"
        )
    if named.count("image") > 1:
        raise SpecError(f"prompt={text!r} names {{image}} twice, and a row has one")
    return pattern
