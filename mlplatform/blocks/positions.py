"""Positions that are added to the input."""

from __future__ import annotations

from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import SpecError
from mlplatform.registry import Natural, block


@block("positions/learned")
class Learned(nn.Module):
    """A table with one row per position, added to the tokens (GPT-2, BERT).

    Args:
        offset: rows before position 0, as in OPT and BART (2); they make the table longer.
    """

    def __init__(self, dim: int, context_length: int, *, offset: Natural = 0) -> None:
        super().__init__()
        self.offset = offset
        self.table = nn.Embedding(context_length + offset, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Add the rows of `context.positions` to x (batch, length, dim)."""
        end = x.shape[1] + (context.cache.length if context.cache is not None else 0)
        room = self.table.num_embeddings - self.offset
        if end > room:
            raise SpecError(f"a sequence of {end} tokens is longer than context_length={room}")
        return x + self.table(context.positions + self.offset)
