"""What training will see: rows as text, with the tokens that are no targets marked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlplatform.data.collate import IGNORED, trained_share
from mlplatform.data.module import DataModule
from mlplatform.processors.tokenizer import Tokenizer

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that would steer the terminal."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of one document that are all targets, or all not."""

    text: str
    document: int
    trained: bool
    tokens: int


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
        if apart:  # a decoder's: a document of their own, after the input
            trained = np.concatenate([np.zeros(len(ids), bool), labels != IGNORED])
            yield stretches(
                data.tokenizer,
                np.concatenate([ids, labels]),
                trained,
                np.concatenate([documents, 2 * trained[len(ids) :]]),
            )
        else:
            yield stretches(data.tokenizer, ids, labels != IGNORED, documents)


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
