"""Scores of transcripts, and what a CTC model's frames spell."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def of_transcripts() -> dict[str, Metric]:
    """Return word and character error rates: edits over the length of the references, over batches and ranks."""
    from torchmetrics.text import CharErrorRate, WordErrorRate

    return {"wer": WordErrorRate(), "cer": CharErrorRate()}


def plain(text: str) -> str:
    """Return the words of a text alone: lower case, white space as one space, of punctuation only what is in a word."""
    kept = re.sub(r"[^\w\s'-]|_|(?<!\w)['-]|['-](?!\w)", " ", text.lower())
    return " ".join(kept.split())


def spelled(logits: Tensor, frames: Sequence[int], blank: int) -> list[list[int]]:
    """Return the labels of each row of (rows, frames, labels): the likeliest of each frame, repeats as one, no blank.

    Args:
        frames: how many of a row are no padding.
    """
    best = logits.argmax(-1).cpu()
    found = [torch.unique_consecutive(row[:count]) for row, count in zip(best, frames, strict=True)]
    return [row[row != blank].tolist() for row in found]
