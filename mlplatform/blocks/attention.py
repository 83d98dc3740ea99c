"""Multi-head attention with grouped keys and values (arXiv:1706.03762, arXiv:2305.13245)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.documents import attend_within, documents_apart
from mlplatform.blocks.masks import attention_mask, memory_mask, merged_mask
from mlplatform.context import Context, placed
from mlplatform.errors import SpecError
from mlplatform.registry import Fraction, Positive, PositiveFloat, Spec, block

Bias = bool | Literal["qkv", "qvo", "o"]


class Heads(nn.Module):
    """The projections every attention shares: q, k, v and out.

    Args:
        bias: true for a bias on all four, or the letters of those that have one (o for out).
        kv_dim: width of what keys and values are made of, when it isn't dim.
    """

    splits: ClassVar[dict[str, str]] = {
        "q": "columns",
        "k": "groups",
        "v": "groups",
        "gate": "columns",
        "q_norm": "heads",
        "k_norm": "heads",
        "out": "rows",
    }
    """How tensor parallelism divides it (training/sharding/layers.py)."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int | None, bias: Bias, kv_dim: int = 0) -> None:
        super().__init__()
        if heads % kv_heads:
            fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise SpecError(f"heads={heads} is not a multiple of kv_heads={kv_heads}; kv_heads may be {fits}")
        if head_dim is None and dim % heads:
            fits = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0 and n <= 4 * heads)
            raise SpecError(f"dim={dim} is not a multiple of heads={heads}; heads may be {fits}, or state head_dim")
        self.heads, self.kv_heads = heads, kv_heads
        self.head_dim = head_dim or dim // heads
        biased = "qkvo" if bias is True else bias or ""
        self.q = nn.Linear(dim, heads * self.head_dim, bias="q" in biased)
        self.k = nn.Linear(kv_dim or dim, kv_heads * self.head_dim, bias="k" in biased)
        self.v = nn.Linear(kv_dim or dim, kv_heads * self.head_dim, bias="v" in biased)
        self.out = nn.Linear(heads * self.head_dim, dim, bias="o" in biased)

    def divisible(self) -> dict[str, int]:
        """Return the numbers that ranks which divide it must divide; none where a norm is over all heads together."""
        return {} if getattr(self, "whole", False) else {"heads": self.heads, "kv_heads": self.kv_heads}

    def split(self, x: Tensor) -> Tensor:
        """(batch, length, heads * head_dim) -> (batch, heads, length, head_dim)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """(batch, heads, length, head_dim) -> (batch, length, dim), through the output projection"""
        return self.out(x.transpose(1, 2).flatten(2))


@block("attention/attention")
class Attention(Heads):
    """Self-attention over the tower's own tokens.

    Args:
        heads: number of query heads; HF's `num_attention_heads`.
        kv_heads: number of key and value heads; a divisor of heads, null for as many.
        head_dim: features per head; null for dim / heads.
        mask: `causal` (each token sees itself and earlier ones) or `full`.
        window: how many keys a token sees at most, itself included; HF's `sliding_window`. With `mask: full` they lie
            around it, the odd one after it.
        bias: true for all four projections, or the letters of those that have one (`qkv`, `qvo`, `o`).
        qk_norm: the tower's norm over each head's queries and keys, before the rotation; `whole` for one over all
            heads together (OLMo 2).
        scale: factor on the scores; null for head_dim ** -0.5.
        softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, T5Gemma). arXiv:2408.00118
        dropout: share of the attention weights set to zero in training.
        gate: what comes out is multiplied by sigmoid(gate(x)) before the output projection. arXiv:2505.06708
        temperature: a factor on the queries that depends on the position.
    """

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        *,
        heads: Positive,
        kv_heads: Positive | None = None,
        head_dim: Positive | None = None,
        mask: Literal["causal", "full"] = "causal",
        window: Positive | None = None,
        bias: bool | Literal["qkv", "qvo", "o"] = False,
        qk_norm: bool | Literal["whole"] = False,
        rope: Annotated[Spec, "rope"] | None = None,
        scale: PositiveFloat | None = None,
        softcap: PositiveFloat | None = None,
        dropout: Fraction = 0.0,
        gate: bool = False,
        temperature: Annotated[Spec, "temperature"] | None = None,
    ) -> None:
        super().__init__(dim, heads, kv_heads or heads, head_dim, bias)
        self.causal = mask == "causal"
        self.window = None
        if window is not None:
            self.window = (window - 1, 0) if self.causal else ((window - 1) // 2, window // 2)
        self.scale, self.softcap, self.dropout = scale, softcap, dropout
        self.whole = qk_norm == "whole"
        widths = (self.q.out_features, self.k.out_features) if self.whole else (self.head_dim, self.head_dim)
        self.q_norm = tower_norm.build(dim=widths[0]) if qk_norm else None
        self.k_norm = tower_norm.build(dim=widths[1]) if qk_norm else None
        self.rope = rope.build(head_dim=self.head_dim, context_length=context_length) if rope else None
        self.gate = nn.Linear(dim, heads * self.head_dim, bias=False) if gate else None
        self.temperature = temperature.build() if temperature else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        y = placed(x, context.places)
        q, k, v = self.queries(y), self.keys(y), self.split(self.v(x))
        if self.rope is not None:
            q, k = self.rope(q, k, context)
        if self.temperature is not None:
            q = q * self.temperature(context).to(q.dtype)
        if context.cache is not None:
            k, v = context.cache.extend(self, k, v)
        return self.finish(x, self.attended(q, k, v, context))

    def attended(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Return the values weighed by the scores of all that each token may see: (batch, heads, queries, head_dim)."""
        plain = self.softcap is None and not (self.dropout and self.training)
        if plain and (documents := documents_apart(context, v)) is not None:
            return attend_within(q, k, v, documents, causal=self.causal, window=self.window, scale=self.scale)
        mask, causal = attention_mask(context, q.shape[2], k.shape[2], q.dtype, causal=self.causal, window=self.window)
        return self.mix(q, k, v, mask, causal)

    def queries(self, x: Tensor) -> Tensor:
        """(batch, length, dim) -> (batch, heads, length, head_dim), normed"""
        return self._normed(self.q(x), self.q_norm)

    def keys(self, x: Tensor) -> Tensor:
        """(batch, length, dim) -> (batch, kv heads, length, head_dim), normed"""
        return self._normed(self.k(x), self.k_norm)

    def _normed(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return self.split(projected)
        return self.split(norm(projected)) if self.whole else norm(self.split(projected))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Return the values weighed by the scores: (batch, heads, queries, head_dim)."""
        dropout = self.dropout if self.training else 0.0
        grouped = self.kv_heads != self.heads
        if self.softcap is not None:
            return capped_attention(q, k, v, mask, causal, self.scale, self.softcap, dropout)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=self.scale, enable_gqa=grouped
        )

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Gate what was mixed, if there is a gate, and project it to (batch, length, dim)."""
        if self.gate is None:
            return self.join(mixed)
        return self.out(mixed.transpose(1, 2).flatten(2) * torch.sigmoid(self.gate(x)))


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, cap: float, dropout: float
) -> Tensor:
    """Scaled dot-product attention whose scores are cap * tanh(scores / cap) before the mask."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = cap * torch.tanh(scores / cap)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout) @ v


@block("attention/merged_attention")
class MergedAttention(Attention):
    """Self- and cross-attention in one softmax over [own keys; the encoder's keys] (T5Gemma 2). arXiv:2512.14856

    Both kinds of keys and values come from the same projections; the encoder's are not rotated and no window hides
    them. Fields as in `attention`.
    """

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim); memory is (batch, memory length, dim)"""
        memory = context.memory
        if memory is None or memory.shape[-1] != x.shape[-1]:
            given = "none" if memory is None else f"one of width {memory.shape[-1]}"
            raise SpecError(f"merged_attention needs the output of an encoder of width {x.shape[-1]}, not {given}")
        y = placed(x, context.places)
        q, k, v = self.queries(y), self.keys(y), self.split(self.v(x))
        if self.rope is not None:
            q, k = self.rope(q, k, context)
        if context.cache is not None:
            k, v = context.cache.extend(self, k, v)
        mask = merged_mask(context, q.shape[2], k.shape[2], q.dtype, causal=self.causal, window=self.window)
        k, v = (
            torch.cat((k, self.keys(placed(memory, context.memory_places))), 2),
            torch.cat((v, self.split(self.v(memory))), 2),
        )
        return self.finish(x, self.mix(q, k, v, mask, causal=False))


@block("attention/cross_attention")
class CrossAttention(Heads):
    """Attention from the tower's tokens to another tower's output, `context.memory`. Fields as in `attention`."""

    def __init__(
        self,
        dim: int,
        memory_dim: int,
        *,
        heads: Positive,
        kv_heads: Positive | None = None,
        head_dim: Positive | None = None,
        bias: bool | Literal["qkv", "qvo", "o"] = False,
        scale: PositiveFloat | None = None,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(dim, heads, kv_heads or heads, head_dim, bias, kv_dim=memory_dim)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim); memory is (batch, memory length, memory_dim)"""
        memory = context.memory
        if memory is None:
            raise SpecError("cross-attention needs the output of an encoder; give encoder_hidden_states")
        q, k = self.q(placed(x, context.places)), self.k(placed(memory, context.memory_places))
        q, k, v = self.split(q), self.split(k), self.split(self.v(memory))
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=memory_mask(context, q.dtype),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=self.kv_heads != self.heads,
        )
        return self.join(mixed)


@block("temperature/log_steps")
class LogSteps(nn.Module):
    """1 + beta * log(1 + floor(position / every)): queries far from the start attend more sharply (Llama 4).

    Args:
        beta: HF's `llama_4_scaling_beta`.
        every: HF's `original_max_position_embeddings`.
    """

    def __init__(self, *, beta: PositiveFloat, every: Positive) -> None:
        super().__init__()
        self.beta, self.every = beta, every

    def forward(self, context: Context) -> Tensor:
        """Return the factors (batch or 1, 1, length, 1)."""
        steps = torch.floor(context.positions / self.every)
        return (1 + self.beta * torch.log1p(steps))[:, None, :, None]
