"""Projectors: from the vectors of one tower to those of another."""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.mlp import MLP
from mlplatform.errors import SpecError
from mlplatform.registry import Activation, Positive, Spec, block


@block("mlp/projector")
class Projector(MLP):
    """down(activation(up(x))), as wide inside as what comes out (LLaVA 1.5). arXiv:2310.03744"""

    def __init__(self, dim: int, out_dim: int = 0, *, activation: Activation = "gelu", bias: bool = True) -> None:
        super().__init__(dim, out_dim, width=out_dim or dim, activation=activation, bias=bias)


@block("mlp/grid_pool")
class GridPool(nn.Module):
    """A square grid of patches averaged to fewer, normed and projected (Gemma 3, T5Gemma 2). arXiv:2503.19786

    Args:
        tokens: vectors an image becomes, a square number; HF's `mm_tokens_per_image`.
        norm: over the width of the patches.
    """

    def __init__(self, dim: int, out_dim: int = 0, *, tokens: Positive, norm: Annotated[Spec, "norm"]) -> None:
        super().__init__()
        self.side = math.isqrt(tokens)
        if self.side**2 != tokens:
            raise SpecError(
                f"tokens={tokens} is no square number; the nearest are {self.side**2} and {(self.side + 1) ** 2}"
            )
        self.norm = norm.build(dim=dim)
        self.out = nn.Linear(dim, out_dim or dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, patches, dim) -> (batch, tokens, out_dim)"""
        side = math.isqrt(x.shape[1])
        if side**2 != x.shape[1] or side % self.side:
            raise SpecError(f"{x.shape[1]} patches are no square grid that pools to {self.side} x {self.side}")
        grid = x.transpose(1, 2).unflatten(-1, (side, side))
        pooled = F.avg_pool2d(grid, side // self.side)
        return self.out(self.norm(pooled.flatten(2).transpose(1, 2)))
