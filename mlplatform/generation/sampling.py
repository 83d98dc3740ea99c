"""Choosing the next token from its logits."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    generator: torch.Generator | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Return the next token (batch,) from logits (batch, vocab).

    Args:
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens. top_p: only the likeliest that together reach this probability.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, places = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        logits = torch.full_like(logits, float("-inf")).scatter(-1, places, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
