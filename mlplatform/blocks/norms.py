"""Normalisation over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.registry import PositiveFloat, block


def rounded_once(x: Tensor) -> Tensor:
    """Under autocast, round a norm's output to the lower precision here, not again in every product that reads it."""
    device = x.device.type
    lower = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # a meta tensor has none
    return x.to(torch.get_autocast_dtype(device)) if lower else x


@block("norm/layer_norm")
class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias. arXiv:1607.06450"""

    def __init__(self, dim: int, *, eps: PositiveFloat = 1e-5, bias: bool = True) -> None:
        super().__init__(dim, eps=eps, bias=bias)


@block("norm/rms_norm")
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the statistics in fp32. arXiv:1910.07467

    Args:
        unit_offset: the weight is stored as its difference from one, as Gemma's is.
    """

    def __init__(self, dim: int, *, eps: PositiveFloat = 1e-6, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.0 if self.unit_offset else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 1.0 if self.unit_offset else self.weight
        return rounded_once(F.rms_norm(x, weight.shape, weight.to(x.dtype), self.eps))
