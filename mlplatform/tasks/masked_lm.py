"""Masked language modelling: predict tokens that were hidden. arXiv:1810.04805"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlplatform.data.collate import IGNORED, Collator, Row, count_bytes, stack
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Fraction, NonNegativeFloat, block
from mlplatform.tasks.task import Batch, Task, count_targets, loss_and_perplexity

SPACES = "ĠĊĉč▁"
"""How byte-level and SentencePiece vocabularies write space, newline, tab and return."""


@block("task/masked_lm")
class MaskedLM(Task):
    """Some tokens are chosen as targets; most of them are hidden, some replaced, some left. Metrics: loss, perplexity.

    Args:
        probability: share of the tokens that become targets; special tokens never do.
        hidden: share of the targets that become the mask token.
        replaced: share of the targets that become a random token; the rest stay as they are.
        whole_words: choose whole words, not single tokens.
    """

    attention = "full"

    def __init__(
        self,
        model: nn.Module,
        *,
        probability: Fraction = 0.15,
        hidden: NonNegativeFloat = 0.8,
        replaced: NonNegativeFloat = 0.1,
        whole_words: bool = False,
    ) -> None:
        if probability == 0:
            raise SpecError("probability=0 hides nothing; it must be between 0 and 1")
        if hidden + replaced > 1:
            raise SpecError(f"hidden={hidden} and replaced={replaced} are shares and sum to more than 1")
        super().__init__(model)
        self.options = (probability, hidden, replaced, whole_words)

    def collator(self, tokenizer: Any, length: int) -> Collator:
        return Masking(tokenizer, *self.options)

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return loss_and_perplexity(sums)


class Masking:
    """The collator of masked language modelling. What is chosen depends on (seed, epoch, sample number) alone.

    Raises:
        DataError: the tokenizer has no mask token.
    """

    overlap = 0

    def __init__(
        self, tokenizer: Any, probability: float, hidden: float, replaced: float, whole_words: bool = False
    ) -> None:
        if tokenizer.mask is None:
            raise DataError(
                f"{tokenizer.source}: masked_lm needs a mask token; set tokenizer.specials=masked or tokenizer.mask"
            )
        self.filler, self.mask_token = tokenizer.filler, tokenizer.mask
        self.probability, self.hidden, self.replaced = probability, hidden, replaced
        self.special = np.asarray(tokenizer.special_ids)
        vocabulary: dict[str, int] = tokenizer.backend.get_vocab()
        self.ordinary = np.setdiff1d(np.asarray(sorted(vocabulary.values())), self.special)
        self.pieces = word_pieces(vocabulary) if whole_words else None

    def __call__(self, rows: list[Row]) -> Batch:
        batch = stack(rows, self.filler)
        ids = batch["input_ids"].numpy()
        real = batch["attention_mask" if "attention_mask" in batch else "document_ids"].numpy() > 0
        allowed = real & ~np.isin(ids, self.special)
        batch["input_ids"], batch["labels"] = map(
            torch.from_numpy, self.mask(ids, allowed, self._draw(rows, ids.shape[1]))
        )
        return count_bytes(batch)

    def _draw(self, rows: list[Row], length: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return what is random about each place: the choice and the fate (2, rows, length), another token.

        What is drawn depends on a row's own length and generator, not on its tokens, nor on what pads it here.
        """
        chances, instead = np.ones((2, len(rows), length)), np.zeros((len(rows), length), dtype=np.int64)
        for number, row in enumerate(rows):
            own, random = len(row.arrays["input_ids"]), row.generator()
            chances[:, number, :own] = random.random((2, own))
            instead[number, :own] = random.integers(len(self.ordinary), size=own)
        return chances, self.ordinary[instead]

    def mask(
        self,
        ids: NDArray[np.int64],
        allowed: NDArray[np.bool_],
        drawn: tuple[NDArray[np.float64], NDArray[np.int64]],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, labels) of rows (rows, length). At least one allowed token of each becomes a target."""
        (choice, fate), instead = drawn
        if self.pieces is not None:
            begins, ends = self.pieces[:, ids]
            starts = ~(begins & np.roll(ends, 1, axis=1))
            starts[:, 0] = True
            first = np.maximum.accumulate(np.where(starts, np.arange(ids.shape[1]), 0), axis=1)
            choice = np.take_along_axis(choice, first, axis=1)  # a word shares its first draw
        lowest = choice.min(axis=1, where=allowed, initial=1.0)[:, None]
        target = allowed & (choice < np.maximum(self.probability, np.nextafter(lowest, 1)))
        labels = np.where(target, ids, IGNORED)
        inputs = np.where(target & (fate < self.hidden), self.mask_token, ids)
        swap = target & (fate >= self.hidden) & (fate < self.hidden + self.replaced)
        return np.where(swap, instead, inputs), labels


def word_pieces(vocabulary: dict[str, int]) -> NDArray[np.bool_]:
    """Return (2, tokens): whether a token may go on a word, and whether a word may go on after it.

    A token goes on the word before it when both hold. WordPiece marks such tokens with `##`; elsewhere they begin
    with a letter, a digit or a piece of a character, and come after one that ends with such.
    """
    pieces = np.zeros((2, max(vocabulary.values()) + 1), dtype=bool)
    wordpiece = any(token.startswith("##") and len(token) > 2 for token in vocabulary)
    for token, number in vocabulary.items():
        if wordpiece:
            pieces[:, number] = token.startswith("##"), True
        elif token:
            pieces[:, number] = _in_word(token[0]), _in_word(token[-1])
    return pieces


def _in_word(character: str) -> bool:
    return character not in SPACES and (character.isalnum() or ord(character) >= 128)
