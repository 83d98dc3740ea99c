"""Positions that are added to the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import SpecError
from mlplatform.registry import Natural, PositiveFloat, block


@block("positions/learned")
class Learned(nn.Module):
    """A table with one row per position, added to the tokens (GPT-2, BERT).

    Args:
        offset: rows before position 0, as in BART (2); they make the table longer.
    """

    def __init__(self, dim: int, context_length: int, *, offset: Natural = 0) -> None:
        super().__init__()
        self.offset = offset
        self.table = nn.Embedding(context_length + offset, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Add the rows of `context.positions` to x (batch, length, dim)."""
        _check_room(x, context, self.table.num_embeddings - self.offset)
        return x + self.table(context.positions + self.offset)


@block("positions/sinusoids")
class Sinusoids(nn.Module):
    """A table of sines, then cosines, of the position at wavelengths from 2 pi to 2 pi * longest. arXiv:1706.03762

    It is kept with the weights, as Whisper's files have it, and not trained.

    Args:
        longest: the longest wavelength in turns of 2 pi positions.
    """

    resets_all = True

    def __init__(self, dim: int, context_length: int, *, longest: PositiveFloat = 10000.0) -> None:
        super().__init__()
        if dim % 2 or dim < 4:
            raise SpecError(f"dim={dim}: sinusoids need an even width of 4 at least")
        self.longest = longest
        self.table = nn.Embedding(context_length, dim).requires_grad_(False)

    def reset_parameters(self) -> None:
        length, dim = self.table.weight.shape
        rates = torch.exp(torch.arange(dim // 2) * (-math.log(self.longest) / (dim // 2 - 1)))
        angles = torch.arange(length)[:, None] * rates
        with torch.no_grad():
            self.table.weight.copy_(torch.cat((angles.sin(), angles.cos()), 1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Add the rows of `context.positions` to x (batch, length, dim)."""
        _check_room(x, context, self.table.num_embeddings)
        return x + self.table(context.positions)


class Counted(nn.Module):
    """A table whose rows count real tokens alone: padding has row `before`, the n-th real token before + n."""

    def __init__(self, dim: int, context_length: int, before: int) -> None:
        super().__init__()
        self.before = before
        self.table = nn.Embedding(context_length + before + 1, dim)

    def real(self, x: Tensor, context: Context) -> Tensor | None:
        """Return which tokens (batch, cached and new) are real, or None where `context.positions` say it all."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Add a row to each of x (batch, length, dim)."""
        _check_room(x, context, self.table.num_embeddings - self.before - 1)
        return x + self.table(self.numbers(x, context))

    def numbers(self, x: Tensor, context: Context) -> Tensor:
        """Return the row numbers (batch or 1, length)."""
        if context.documents is not None:  # packed: each document counts from 0, padding has document 0
            return ((context.positions + 1) * (context.documents > 0) + self.before)[..., -x.shape[1] :]
        real = None if context.stated else self.real(x, context)
        if real is None:
            return context.positions + self.before + 1
        return (real.long().cumsum(-1) * real + self.before)[:, -x.shape[1] :]


@block("positions/learned_after_padding")
class LearnedAfterPadding(Counted):
    """Rows counted over tokens that are not `pad_token`, from the row after it (RoBERTa, XLM-R, MPNet).

    As in HF, `position_ids` that come with the batch are rows of the table.

    Args:
        pad_token: HF's `pad_token_id`; the table has as many more rows, and one.
    """

    def __init__(self, dim: int, context_length: int, *, pad_token: Natural = 1) -> None:
        super().__init__(dim, context_length, pad_token)

    def real(self, x: Tensor, context: Context) -> Tensor | None:
        if context.tokens is None or (context.cache is not None and context.cache.length):
            return None
        return context.tokens != self.before

    def numbers(self, x: Tensor, context: Context) -> Tensor:
        return context.positions if context.stated and context.documents is None else super().numbers(x, context)


@block("positions/learned_over_mask")
class LearnedOverMask(Counted):
    """Rows counted over the tokens that `attention_mask` says are real, after two more (OPT). arXiv:2205.01068"""

    def __init__(self, dim: int, context_length: int) -> None:
        super().__init__(dim, context_length, 1)

    def real(self, x: Tensor, context: Context) -> Tensor | None:
        return context.padding


def _check_room(x: Tensor, context: Context, room: int) -> None:
    end = x.shape[1] + (context.cache.length if context.cache is not None else 0)
    if end > room:
        raise SpecError(f"a sequence of {end} tokens is longer than context_length={room}")
