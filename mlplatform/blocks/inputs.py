"""The first block of a tower: turns a batch into hidden states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Fraction, Natural, Positive, PositiveFloat, Spec, block


class TokenInput(nn.Module):
    """What inputs of tokens share: rows of a table, plus what the model adds to them."""

    reads = "input_ids"

    positions: nn.Module | None
    segments: nn.Embedding | None
    norm: nn.Module | None
    dropout: nn.Dropout
    scale: float = 1.0
    scale_given: bool = False

    def __init__(self, dim: int, tower_norm: Spec, context_length: int, positions: Spec | None, norm: bool) -> None:
        super().__init__()
        self.positions = positions.build(dim=dim, context_length=context_length) if positions else None
        self.segments = None
        self.norm = tower_norm.build(dim=dim) if norm else None

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the scaled rows (batch, length, dim) of token numbers (batch, length)."""
        raise NotImplementedError

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
            x = self.rows(batch["input_ids"])
        elif self.scale_given:
            x = x * self.scale
        if self.segments is not None:
            kinds = batch.get("token_type_ids")
            x = x + (self.segments.weight[0] if kinds is None else self.segments(kinds))
        if self.positions is not None:
            x = self.positions(x, context)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)


@block("input/tokens")
class Tokens(TokenInput):
    """Token embeddings, plus positions and segments where the model has them, then a norm and dropout.

    Args:
        vocab: rows of the table; HF's `vocab_size`.
        segments: rows of the segment table; HF's `type_vocab_size`; 0 for none.
        scale: factor on the token rows; `sqrt_dim` for sqrt(dim).
        scale_given: the factor is on `inputs_embeds` too (Gemma, AFMoE, Granite); else they are taken as they are.
        norm: the tower's norm after the sum.
    """

    splits: ClassVar[dict[str, str]] = {"table": "table"}

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        *,
        vocab: Positive,
        positions: Annotated[Spec, "positions"] | None = None,
        segments: Natural = 0,
        scale: PositiveFloat | Literal["sqrt_dim"] = 1.0,
        scale_given: bool = False,
        norm: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(dim, tower_norm, context_length, positions, norm)
        self.table = nn.Embedding(vocab, dim)
        self.segments = nn.Embedding(segments, dim) if segments else None
        self.scale, self.scale_given = math.sqrt(dim) if scale == "sqrt_dim" else float(scale), scale_given
        self.dropout = nn.Dropout(dropout)

    def rows(self, tokens: Tensor) -> Tensor:
        rows = self.table(tokens)
        return rows if self.scale == 1.0 else rows * self.scale


@block("input/tokens_one_apart")
class TokensOneApart(Tokens):
    """Tokens, one of which has a vector of its own beside the table, unscaled: Gemma's end of an image.

    Args:
        apart: the number of that token; HF's `eoi_token_index`. The other fields are as in `tokens`.
    """

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        *,
        vocab: Positive,
        apart: Natural,
        scale: PositiveFloat | Literal["sqrt_dim"] = 1.0,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(dim, tower_norm, context_length, vocab=vocab, scale=scale, dropout=dropout)
        if apart >= vocab:
            raise SpecError(f"apart={apart} is no token of vocab={vocab}")
        self.apart = apart
        self.special = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.special)

    def rows(self, tokens: Tensor) -> Tensor:
        return torch.where((tokens == self.apart)[..., None], self.special, super().rows(tokens))


@block("input/shared_tokens")
class SharedTokens(TokenInput):
    """Another tower's tokens, by its table and scale: the decoder of an encoder-decoder (T5, BART).

    Fields as in `tokens`.
    """

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        shared: nn.Module | None,
        *,
        positions: Annotated[Spec, "positions"] | None = None,
        norm: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(dim, tower_norm, context_length, positions, norm)
        if not isinstance(shared, TokenInput):
            raise SpecError("shared_tokens needs another tower with a token table")
        self._shared = (shared,)  # a tuple, so that the table has one owner and one name
        self.dropout = nn.Dropout(dropout)

    @property
    def table(self) -> nn.Module:
        return self._shared[0].get_submodule("table")

    def rows(self, tokens: Tensor) -> Tensor:
        return self._shared[0].rows(tokens)
