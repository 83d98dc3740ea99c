"""Feed-forward blocks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mlplatform.blocks.activations import ACTIVATIONS
from mlplatform.registry import Activation, Fraction, Positive, block


@block("mlp/mlp")
class MLP(nn.Module):
    """down(activation(up(x))). arXiv:1706.03762

    Args:
        width: hidden features; null for 4 * dim.
        dropout: share of the hidden features set to zero in training.
    """

    splits: ClassVar[dict[str, str]] = {"up": "columns", "down": "rows"}

    def __init__(
        self,
        dim: int,
        out_dim: int = 0,
        *,
        width: Positive | None = None,
        activation: Activation = "gelu",
        bias: bool = True,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(dim, width or 4 * dim, bias=bias)
        self.down = nn.Linear(width or 4 * dim, out_dim or dim, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def divisible(self) -> dict[str, int]:
        """Return what ranks that divide it must divide."""
        return {"width": self.up.out_features}

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        return self.down(self.dropout(self.activation(self.up(x))))


@block("mlp/gated_mlp")
class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)); SwiGLU with `silu`. arXiv:2002.05202"""

    splits: ClassVar[dict[str, str]] = {"gate": "columns", "up": "columns", "down": "rows"}

    def __init__(
        self,
        dim: int,
        *,
        width: Positive,
        activation: Activation = "silu",
        bias: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, width, bias=bias)
        self.up = nn.Linear(dim, width, bias=bias)
        self.down = nn.Linear(width, dim, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def divisible(self) -> dict[str, int]:
        """Return what ranks that divide it must divide."""
        return {"width": self.up.out_features}

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))
