"""Layers: an attention, optionally a second one over another tower, and an MLP, with the norms in their places."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.registry import Fraction, PositiveFloat, Spec, block


class Layer(nn.Module):
    """What all layers share: the sublayers, one norm for each, and the dropout before the residual sum.

    Args:
        residual_scale: factor on what a sublayer adds to the residual stream (Granite, MiniCPM); HF's
            `residual_multiplier`.
    """

    cross: Any
    cross_norm: Any

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        memory_dim: int = 0,
        *,
        attention: Annotated[Spec, "attention"],
        cross: Annotated[Spec, "attention"] | None = None,
        mlp: Annotated[Spec, "mlp"],
        dropout: Fraction = 0.0,
        residual_scale: PositiveFloat = 1.0,
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
        self.residual_scale = residual_scale

    def reads(self, context: Context) -> bool:
        """Whether there is another tower's output to read; a text by itself goes past the `cross` (BERT, BLIP)."""
        return self.cross is not None and context.memory is not None

    def written(self, y: Tensor) -> Tensor:
        """Return what of a sublayer's output is added to the residual stream."""
        y = self.dropout(y)
        return y if self.residual_scale == 1.0 else y * self.residual_scale


@block("layer/pre_norm")
class PreNorm(Layer):
    """x + sublayer(norm(x)) for each sublayer (GPT-2, Llama). arXiv:2002.04745"""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        x = x + self.written(self.attention(self.attention_norm(x), context))
        if self.reads(context):
            x = x + self.written(self.cross(self.cross_norm(x), context))
        return x + self.written(self.mlp(self.mlp_norm(x)))


@block("layer/post_norm")
class PostNorm(Layer):
    """norm(x + sublayer(x)) for each sublayer (the first Transformer, BERT). arXiv:1706.03762"""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        x = self.attention_norm(x + self.written(self.attention(x, context)))
        if self.reads(context):
            x = self.cross_norm(x + self.written(self.cross(x, context)))
        return self.mlp_norm(x + self.written(self.mlp(x)))


@block("layer/sandwich_norm")
class SandwichNorm(Layer):
    """x + output_norm(sublayer(norm(x))): a norm before and after each sublayer (Gemma 2, AFMoE). arXiv:2408.00118"""

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        memory_dim: int = 0,
        *,
        attention: Annotated[Spec, "attention"],
        cross: Annotated[Spec, "attention"] | None = None,
        mlp: Annotated[Spec, "mlp"],
        dropout: Fraction = 0.0,
        residual_scale: PositiveFloat = 1.0,
    ) -> None:
        sublayers = {"attention": attention, "cross": cross, "mlp": mlp}
        super().__init__(
            dim, tower_norm, context_length, memory_dim, **sublayers, dropout=dropout, residual_scale=residual_scale
        )
        self.attention_output_norm = tower_norm.build(dim=dim)
        self.cross_output_norm = tower_norm.build(dim=dim) if cross else None
        self.mlp_output_norm = tower_norm.build(dim=dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        mixed = self.attention(self.attention_norm(x), context)
        x = x + self.written(self.attention_output_norm(mixed))
        if self.cross_output_norm is not None and self.reads(context):
            x = x + self.written(self.cross_output_norm(self.cross(self.cross_norm(x), context)))
        return x + self.written(self.mlp_output_norm(self.mlp(self.mlp_norm(x))))


@block("layer/output_norm")
class OutputNorm(Layer):
    """x + norm(sublayer(x)): the norm only on what a sublayer writes (OLMo 2). arXiv:2501.00656"""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        x = x + self.written(self.attention_norm(self.attention(x, context)))
        if self.reads(context):
            x = x + self.written(self.cross_norm(self.cross(x, context)))
        return x + self.written(self.mlp_norm(self.mlp(x)))


@block("layer/parallel")
class Parallel(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x)): both sublayers read the same input (GPT-J, NeoX, Falcon, Phi).

    Args:
        shared_norm: one norm for both (GPT-J, Phi) rather than one each (NeoX).
    """

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        *,
        attention: Annotated[Spec, "attention"],
        mlp: Annotated[Spec, "mlp"],
        shared_norm: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        handed = {"dim": dim, "tower_norm": tower_norm, "context_length": context_length}
        self.attention_norm = tower_norm.build(dim=dim)
        self.attention = attention.build(**handed)
        self.mlp_norm = None if shared_norm else tower_norm.build(dim=dim)
        self.mlp = mlp.build(**handed)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        read = self.attention_norm(x)
        mixed = self.dropout(self.attention(read, context))
        return x + mixed + self.dropout(self.mlp(read if self.mlp_norm is None else self.mlp_norm(x)))
