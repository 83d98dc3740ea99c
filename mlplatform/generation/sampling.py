"""Choosing the next token from its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from mlplatform.errors import SpecError


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


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise SpecError for options that leave nothing to choose from."""
    if not 0 <= temperature < float("inf"):
        raise SpecError(f"temperature={temperature}: 0 takes the likeliest token, above 0 is drawn; 0.8 is usual")
    if top_k is not None and top_k < 1:
        raise SpecError(f"top_k={top_k}: how many of the likeliest tokens may be drawn, at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise SpecError(f"top_p={top_p}: the probability the likeliest tokens reach together, above 0 and at most 1")
