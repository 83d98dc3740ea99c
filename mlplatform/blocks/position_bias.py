"""Positions as a bias on the attention scores, the same in every layer of a tower."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import SpecError
from mlplatform.registry import Positive, block


def distances(context: Context, queries: int) -> Tensor:
    """Return (queries, keys): the key's place minus the query's, with cached keys counted."""
    keys = queries + (context.cache.length if context.cache is not None else 0)
    places = torch.arange(keys, device=context.positions.device)
    return places[None, :] - places[keys - queries :, None]


@block("position_bias/relative_buckets")
class RelativeBuckets(nn.Module):
    """T5's: a learned number per head and bucket of distance; near distances exact, far ones by log. arXiv:1910.10683

    Args:
        buckets: HF's `relative_attention_num_buckets`.
        max_distance: distances from here on share a bucket; HF's `relative_attention_max_distance`.
        bidirectional: half of the buckets are for keys after the query (encoders).
    """

    splits: ClassVar[dict[str, str]] = {"": "bias"}

    def __init__(
        self, heads: int, *, buckets: Positive = 32, max_distance: Positive = 128, bidirectional: bool = True
    ) -> None:
        least = 4 if bidirectional else 2
        if buckets < least:
            raise SpecError(f"buckets={buckets} can't tell distances apart; {least} are the least")
        if max_distance <= buckets // least:
            told = (
                f"max_distance={max_distance} lies within the {buckets // least} distances with a bucket of their own"
            )
            raise SpecError(f"{told}; set it above them")
        super().__init__()
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.table = nn.Embedding(buckets, heads)

    def divisible(self) -> dict[str, int]:
        """Return what ranks that divide it must divide."""
        return {"heads": self.table.embedding_dim}

    def forward(self, context: Context, queries: int) -> Tensor:
        """Return (1, heads, queries, keys)."""
        return self.table(self.bucket(distances(context, queries))).permute(2, 0, 1)[None]

    def bucket(self, distance: Tensor) -> Tensor:
        """Return the bucket number of each signed distance (key minus query)."""
        buckets, first = self.buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            first = (distance > 0) * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        far = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (far * (buckets - exact)).long()).clamp(max=buckets - 1)
        return first + torch.where(distance < exact, distance, far)


@block("position_bias/alibi")
class Alibi(nn.Module):
    """A penalty that grows with the distance, by a slope of each head's own; nothing is learned. arXiv:2108.12409

    The same before and after a token, where it sees both.
    """

    splits: ClassVar[dict[str, str]] = {"": "bias"}

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def divisible(self) -> dict[str, int]:
        """Return what ranks that divide it must divide."""
        return {"heads": self.heads}

    def forward(self, context: Context, queries: int) -> Tensor:
        """Return (1, heads, queries, keys)."""
        distance = distances(context, queries).abs()
        slopes = torch.tensor(self.slopes(), device=distance.device)
        return (-slopes[:, None, None] * distance)[None]

    def slopes(self) -> list[float]:
        """Return 2^(-8i/n) for i = 1..n; for other n, those of the power below and every other of the next."""
        power = 2 ** math.floor(math.log2(self.heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        more = [2 ** (-4 * (2 * i + 1) / power) for i in range(self.heads - power)]
        return slopes + more
