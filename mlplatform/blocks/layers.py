"""Layers: an attention, optionally a second one over another tower, and an MLP, with the norms in their places."""

from __future__ import annotations

from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.registry import Child, Fraction, Spec, block


class Layer(nn.Module):
    """What all layers share: the sublayers, one norm for each, and the dropout before the residual sum."""

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        memory_dim: int = 0,
        *,
        attention: Child["attention"],
        cross: Child["attention"] | None = None,
        mlp: Child["mlp"],
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        handed = {"dim": dim, "tower_norm": tower_norm, "context_length": context_length}
        self.attention_norm = tower_norm.build(dim=dim)
        self.attention = attention.build(**handed)
        self.cross_norm = tower_norm.build(dim=dim) if cross else None
        self.cross = cross.build(**handed, memory_dim=memory_dim or dim) if cross else None
        self.mlp_norm = tower_norm.build(dim=dim)
        self.mlp = mlp.build(**handed)
        self.dropout = nn.Dropout(dropout)


@block("layer/pre_norm")
class PreNorm(Layer):
    """x + sublayer(norm(x)) for each sublayer (GPT-2, Llama). arXiv:2002.04745"""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), context))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


@block("layer/post_norm")
class PostNorm(Layer):
    """norm(x + sublayer(x)) for each sublayer (the first Transformer, BERT). arXiv:1706.03762"""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        x = self.attention_norm(x + self.dropout(self.attention(x, context)))
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, context)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))
