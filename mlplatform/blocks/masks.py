"""Who may attend to whom: causal order, window, padding and packed documents, as one mask per forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from mlplatform.context import Context

Window = tuple[int, int]
"""How many keys before and after a query it may see; the query itself is not counted."""


def attention_mask(
    context: Context, queries: int, keys: int, dtype: torch.dtype, *, causal: bool, window: Window | None
) -> tuple[Tensor | None, bool]:
    """Return (additive mask or None, whether the plain causal order is all there is).

    The mask is (batch or 1, heads or 1, queries, keys): -inf where a query may not look, else 0 or the tower's
    position bias. It is made once per pass. A query left with no key (padding before a text) sees all of them: an
    empty row would be NaN.
    """
    everything = window is None and context.padding is None and context.documents is None and context.bias is None
    if everything and queries == 1:
        return None, False  # one new token sees all before it
    if everything and queries == keys:
        return None, causal
    key = ("mask", causal, window, queries, keys, dtype)
    if key not in context.memo:
        allowed = _allowed(context, queries, keys, causal, window)
        seen = torch.zeros((), device=allowed.device) if context.bias is None else context.bias
        mask = seen.to(dtype).where(allowed, float("-inf"))
        if mask.requires_grad and context.recomputed:
            return mask, False
        context.memo[key] = mask
    return context.memo[key], False


def memory_mask(context: Context, dtype: torch.dtype) -> Tensor | None:
    """Return the (batch, 1, 1, memory length) additive mask of the encoder's padding, or None without padding."""
    if context.memory_padding is None:
        return None
    key = ("memory mask", dtype)
    if key not in context.memo:
        allowed = context.memory_padding.bool()[:, None, None, :]
        context.memo[key] = torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, float("-inf"))
    return context.memo[key]


def merged_mask(
    context: Context, queries: int, keys: int, dtype: torch.dtype, *, causal: bool, window: Window | None
) -> Tensor:
    """Return the additive mask (batch or 1, heads or 1, queries, keys + memory length) of own and encoder's keys."""
    assert context.memory is not None
    key = ("merged mask", causal, window, queries, keys, dtype)
    if key not in context.memo:
        allowed = _allowed(context, queries, keys, causal, window)
        own = torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, float("-inf"))
        memory = memory_mask(context, dtype)
        if memory is None:
            memory = own.new_zeros(1, 1, 1, context.memory.shape[1])
        rows = max(own.shape[0], memory.shape[0])
        own, memory = own.expand(rows, -1, -1, -1), memory.expand(rows, -1, queries, -1)
        context.memo[key] = torch.cat((own, memory), -1)
    return context.memo[key]


def _allowed(context: Context, queries: int, keys: int, causal: bool, window: Window | None) -> Tensor:
    device = context.positions.device
    q = torch.arange(keys - queries, keys, device=device)[:, None]
    k = torch.arange(keys, device=device)[None]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        allowed = allowed & (k <= q)
    if window is not None:
        allowed = allowed & (q - k <= window[0]) & (k - q <= window[1])
    allowed = allowed[None, None]
    if context.padding is not None:
        allowed = allowed & context.padding[:, None, None, :keys]
    if context.documents is not None:
        documents = context.documents
        allowed = allowed & (documents[:, None, -queries:, None] == documents[:, None, None, :])
    return allowed | ~allowed.any(-1, keepdim=True)
