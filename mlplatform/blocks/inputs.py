"""The first block of a tower: turns a batch into hidden states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import DataError
from mlplatform.registry import Child, Fraction, Natural, Positive, PositiveFloat, Spec, block


@block("input/tokens")
class Tokens(nn.Module):
    """Token embeddings, plus positions and segments where the model has them, then a norm and dropout.

    Args:
        vocab: rows of the table; HF's `vocab_size`.
        segments: rows of the segment table; HF's `type_vocab_size`; 0 for none.
        scale: factor on the token rows; `sqrt_dim` for sqrt(dim).
        norm: the tower's norm after the sum.
    """

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        *,
        vocab: Positive,
        positions: Child["positions"] | None = None,
        segments: Natural = 0,
        scale: PositiveFloat | Literal["sqrt_dim"] = 1.0,
        norm: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, dim)
        self.positions = positions.build(dim=dim, context_length=context_length) if positions else None
        self.segments = nn.Embedding(segments, dim) if segments else None
        self.scale = math.sqrt(dim) if scale == "sqrt_dim" else float(scale)
        self.norm = tower_norm.build(dim=dim) if norm else None
        self.dropout = nn.Dropout(dropout)

    def size(self, batch: Mapping[str, Tensor]) -> tuple[int, torch.device]:
        """Return the number of positions this batch takes in the tower, and where it lies."""
        given = batch.get("inputs_embeds") if batch.get("input_ids") is None else batch["input_ids"]
        if given is None:
            raise DataError("the batch has no 'input_ids'; this model reads tokens")
        return given.shape[1], given.device

    def forward(self, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """input_ids (batch, length) int, or inputs_embeds (batch, length, dim) -> (batch, length, dim)"""
        x = batch.get("inputs_embeds")
        if x is None:
            x = self.table(batch["input_ids"])
            x = x if self.scale == 1.0 else x * self.scale
        if self.segments is not None:
            kinds = batch.get("token_type_ids")
            x = x + (self.segments.weight[0] if kinds is None else self.segments(kinds))
        if self.positions is not None:
            x = self.positions(x, context)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)
