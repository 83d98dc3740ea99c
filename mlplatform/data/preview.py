"""What training will see: rows as text, with the tokens that are no targets marked; records with their pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlplatform.data.collate import IGNORED, Batch, Row, trained_share
from mlplatform.data.examples import RecordRows, Tools
from mlplatform.data.fields import Field, Picture, Sound
from mlplatform.data.module import DataModule
from mlplatform.data.pictures import picture
from mlplatform.data.records import Record
from mlplatform.data.sound import read
from mlplatform.processors.image import pixels_of
from mlplatform.processors.tokenizer import Tokenizer

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that would steer the terminal."""
LONGEST = 400
"""Characters of a field's value that are shown."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of one document that are all targets, or all not."""

    text: str
    document: int
    trained: bool
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One record as training sees it.

    Args:
        record: whose row it is. told: a line for each of its fields.
        row: its text, where the model reads one; `masked` where the loss is over some of its tokens.
        picture: its image after all changes, where it has one.
    """

    record: Record
    told: list[str]
    row: list[Stretch] = field(default_factory=list)
    masked: bool = False
    picture: Image.Image | None = None


def preview(data: DataModule, count: int = 3) -> Iterator[list[Stretch]]:
    """Yield the first rows of training, decoded.

    What a stretch shows is the input; where a task hides a token from the model (masked LM), its mask token stands.

    Raises:
        DataError: none or all of the tokens are targets.
    """
    data.setup()
    batch = data.first_rows(min(count, data.samples_per_epoch))
    apart = getattr(data.collator, "labels_apart", False)
    if not apart:  # a decoder's labels may be more than the tokens of the input
        trained_share(batch)
    kinds = batch["document_ids"] if "document_ids" in batch else batch["attention_mask"]
    for ids, labels, documents in zip(batch["input_ids"].numpy(), batch["labels"].numpy(), kinds.numpy(), strict=True):
        if apart:
            yield written_after(data.tokenizer, ids, labels, documents)
        else:
            yield stretches(data.tokenizer, ids, labels != IGNORED, documents)


def written_after(
    tokenizer: Tokenizer, ids: NDArray[np.int64], labels: NDArray[np.int64], documents: NDArray[np.int64]
) -> list[Stretch]:
    """Return what a decoder writes about an input, as a document of its own after it."""
    trained = np.concatenate([np.zeros(len(ids), bool), labels != IGNORED])
    after = np.concatenate([documents, 2 * trained[len(ids) :]])
    return stretches(tokenizer, np.concatenate([ids, labels]), trained, after)


def samples(data: DataModule, tools: Tools, count: int = 3) -> Iterator[Sample]:
    """Yield the first rows of training on records: what each is made of, and what the model gets of it."""
    rows = data.train_rows
    assert isinstance(rows, RecordRows)
    first = data.order.samples(0, min(count, len(rows)))
    for number, epoch in ((one.number or 0, one.epoch) for one in first):
        record = rows.at(number)
        batch = data.collator([Row(rows.row(number, data.seed, epoch), data.seed, epoch, number)])
        fields = rows.records.shaping.reads.fields  # type: ignore[attr-defined]
        told = [f"{name}: {said(record[name], kind)}" for name, kind in fields.items() if name in record.values]
        labels, ids = batch.get("labels"), batch.get("input_ids")
        apart = getattr(data.collator, "labels_apart", False)
        masked = labels is not None and ids is not None and (apart or labels.shape == ids.shape)
        yield Sample(record, told, _row(batch, data.tokenizer, masked, apart), masked, _picture(batch, tools))


def said(value: Any, kind: Field) -> str:
    """Return a field's value in a line: the size of an image, the length of a sound, the names of classes, a text."""
    if isinstance(kind, Picture) and isinstance(value, list):
        return "; ".join(said(one, kind) for one in value)
    if isinstance(kind, Picture):
        height, width = pixels_of(value, "the image", False).shape[1:]
        return f"{width} x {height} pixels{_file(value)}"
    if isinstance(kind, Sound):
        samples, rate = read(value)
        return f"{len(samples) / rate:.2f} s at {rate:,} samples a second{_file(value)}"
    if kind.holds_classes:
        names = kind.classes(value)
        return ", ".join(names) if names else "none"
    text = CONTROL.sub("�", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _file(value: Any) -> str:
    return f", {value}" if isinstance(value, Path) else ""


def _row(batch: Batch, tokenizer: Tokenizer | None, masked: bool, apart: bool) -> list[Stretch]:
    """Return the text of a batch of one row; where the loss is over something else, nothing of it is marked."""
    if tokenizer is None or "input_ids" not in batch:
        return []
    ids = batch["input_ids"][0].numpy()
    if apart:
        return written_after(tokenizer, ids, batch["labels"][0].numpy(), batch["attention_mask"][0].numpy())
    trained = batch["labels"][0].numpy() != IGNORED if masked else np.ones(len(ids), bool)
    return stretches(tokenizer, ids, trained, batch["attention_mask"][0].numpy())


def _picture(batch: Batch, tools: Tools) -> Image.Image | None:
    """Return the image of a batch of one row, with the boxes it has."""
    pixels = batch.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        return None
    boxes = []
    if "boxes" in batch:
        [names] = tools.classes.values()
        found = zip(batch["classes"][0].tolist(), batch["boxes"][0].tolist(), strict=True)
        boxes = [(names[number], box) for number, box in found if number != IGNORED]
    return picture(pixels[0].numpy(), getattr(tools.processor, "settings", None), boxes)


def stretches(
    tokenizer: Tokenizer, ids: NDArray[np.int64], trained: NDArray[np.bool_], documents: NDArray[np.int64]
) -> list[Stretch]:
    """Group the tokens of one row (length,) by document and by whether they are targets; padding (0) is left out."""
    changes = np.flatnonzero((np.diff(documents) != 0) | (np.diff(trained.astype(np.int8)) != 0)) + 1
    found = []
    for part in np.split(np.arange(len(ids)), changes):
        if len(part) and documents[part[0]] > 0:
            text = CONTROL.sub("�", tokenizer.decode(ids[part], specials=True))
            found.append(Stretch(text, int(documents[part[0]]), bool(trained[part[0]]), len(part)))
    return found


def as_text(row: list[Stretch], *, color: bool) -> str:
    """Return a row for a terminal: targets plain, the rest dim (with color) or between ⟦ ⟧; documents on new lines."""
    out, document = [], None
    for stretch in row:
        if document is not None and stretch.document != document:
            out.append("\n")
        document = stretch.document
        if stretch.trained:
            out.append(stretch.text)
        else:
            out.append(f"\x1b[2;7m{stretch.text}\x1b[0m" if color else f"⟦{stretch.text}⟧")
    return "".join(out)
