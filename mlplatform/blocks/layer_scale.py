"""Layers whose sublayers write through a learned factor for each feature."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from mlplatform.blocks.layers import Layer
from mlplatform.context import Context
from mlplatform.registry import Fraction, PositiveFloat, Spec, block


@block("layer/scaled_pre_norm")
class ScaledPreNorm(Layer):
    """x + scale * sublayer(norm(x)), the scale one learned number a feature (CaiT, DINOv2). arXiv:2103.17239

    Args:
        start: what the scales are before training; HF's `layerscale_value`.
    """

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        *,
        attention: Annotated[Spec, "attention"],
        mlp: Annotated[Spec, "mlp"],
        start: PositiveFloat = 1e-5,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(dim, tower_norm, context_length, attention=attention, mlp=mlp, dropout=dropout)
        self.start = start
        self.attention_scale = nn.Parameter(torch.empty(dim))
        self.mlp_scale = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.attention_scale, self.start)
        nn.init.constant_(self.mlp_scale, self.start)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim)"""
        x = x + self.dropout(self.attention_scale * self.attention(self.attention_norm(x), context))
        return x + self.dropout(self.mlp_scale * self.mlp(self.mlp_norm(x)))
