"""Scores of transcripts, and what a CTC model's frames spell."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from mlplatform.tasks.scores import need_package
from mlplatform.tasks.text_scores import TextScore


def of_transcripts() -> dict[str, ErrorRate]:
    """Return word and character error rates, over batches and ranks. Raises SpecError when jiwer is not installed."""
    need_package("jiwer", "word error rate", "task")
    return {"wer": ErrorRate(word_errors), "cer": ErrorRate(letter_errors)}


class ErrorRate(TextScore):
    """A score of which less is better."""

    higher_is_better = False


def word_errors(said: list[str], wanted: list[list[str]]) -> float:
    """Return the words that are wrong, missing or too many, over those of the transcripts, by jiwer."""
    import jiwer

    return float(jiwer.wer([right for [right] in wanted], said))


def letter_errors(said: list[str], wanted: list[list[str]]) -> float:
    """Return the same of characters, spaces among them, by jiwer."""
    import jiwer

    return float(jiwer.cer([right for [right] in wanted], said))


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
