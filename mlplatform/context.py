"""What goes through a forward pass beside the hidden states (Context), and what comes out of a model (Output)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Output(dict[str, Any]):
    """What a model returns: Hugging Face's field names as attributes and as keys; a field not computed is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Cache:
    """Keys and values of earlier tokens, one entry per attention block."""

    aligned = False
    """Whether labels that come with it stand under the logits that predict them."""

    def __init__(self) -> None:
        self.length = 0
        self.entries: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, owner: torch.nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, head_dim) keys and values of one block; return all it has."""
        if (seen := self.entries.get(id(owner))) is not None:
            keys, values = torch.cat([seen[0], keys], 2), torch.cat([seen[1], values], 2)
        self.entries[id(owner)] = (keys, values)
        return keys, values

    def reorder(self, rows: Tensor) -> None:
        """Keep the given batch rows, in that order."""
        self.entries = {owner: (k[rows], v[rows]) for owner, (k, v) in self.entries.items()}


@dataclass
class Context:
    """One object per forward pass of a tower, so that no block has a ten-argument forward.

    Shapes: positions (1 or batch, length) int; padding (batch, keys) bool, True for real tokens; documents
    (batch, length) int, packed documents numbered from 1, 0 for padding; memory (batch, memory length, width).
    """

    positions: Tensor
    padding: Tensor | None = None
    documents: Tensor | None = None
    tokens: Tensor | None = None
    """The input's token numbers (batch, length), where it has any."""
    memory: Tensor | None = None
    memory_padding: Tensor | None = None
    cache: Cache | None = None
    stated: bool = False
    """Whether the batch came with `position_ids` of its own."""
    bias: Tensor | None = None
    """Added to every self-attention's scores: (1, heads, queries, keys)."""
    places: Tensor | None = None
    """Where each position is, as vectors added in every layer to what self-attention's queries and keys are made from,
    not to values: (batch or 1, length, dim)."""
    memory_places: Tensor | None = None
    """The same for the memory's keys: (batch or 1, memory length, width)."""
    features: Tensor | None = None
    """What the input made of a signal before it came to the tower's width: (batch, length, channels)."""
    hidden: Tensor | None = None
    """Which positions the batch says to hide from the tower: (batch, length) bool."""
    aligned: bool = False
    """Labels stand under the logits that predict them (encoder-decoder); otherwise they are the input itself."""
    recomputed: bool = False
    """Whether layers run again in the backward pass, where they have to make what they made before."""
    memo: dict[Any, Any] = field(default_factory=dict)
    """Tables every layer shares within this pass (masks, rotary angles), by a key that holds their settings."""

    @classmethod
    def of(cls, batch: Mapping[str, Any], length: int, device: torch.device, cache: Cache | None = None) -> Context:
        """Read the batch's `attention_mask`, `position_ids`, `document_ids`, `encoder_hidden_states` and
        `encoder_attention_mask` (each may be absent).
        """
        past = cache.length if cache is not None else 0
        positions = batch.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length, device=device)[None]
        mask = batch.get("attention_mask")
        padding = None if mask is None else mask.bool()
        documents, tokens = batch.get("document_ids"), batch.get("input_ids")
        memory, hidden = batch.get("encoder_hidden_states"), batch.get("encoder_attention_mask")
        return cls(
            positions,
            padding,
            documents,
            tokens,
            memory,
            None if hidden is None else hidden.bool(),
            cache=cache,
            stated=batch.get("position_ids") is not None,
            aligned=cache is not None and cache.aligned,
        )


def placed(x: Tensor, places: Tensor | None) -> Tensor:
    """Return x with the vectors of its places, where there are any."""
    return x if places is None else x + places
