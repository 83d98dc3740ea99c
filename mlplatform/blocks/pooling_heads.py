"""Heads that gather a whole tower into one vector by attention."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.attention import Heads
from mlplatform.context import Context, Output
from mlplatform.registry import Positive, Spec, block


@block("head/attention_pool")
class AttentionPool(nn.Module):
    """`pooler_output`: one learned query attends to all tokens, then x + mlp(norm(x)) (SigLIP). arXiv:2303.15343

    Args:
        heads: of the attention, whose projections have biases.
    """

    task = "features"

    def __init__(self, dim: int, tower_norm: Spec, *, heads: Positive, mlp: Annotated[Spec, "mlp"]) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(dim))
        self.attention = Heads(dim, heads, heads, None, bias=True)
        self.norm = tower_norm.build(dim=dim)
        self.mlp = mlp.build(dim=dim, tower_norm=tower_norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.probe, std=0.02)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> pooler_output (batch, dim)"""
        at = self.attention
        query = at.split(at.q(self.probe)[None, None]).expand(len(x), -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, at.split(at.k(x)), at.split(at.v(x)))
        pooled = at.join(mixed)[:, 0]
        return Output(pooler_output=pooled + self.mlp(self.norm(pooled)))
