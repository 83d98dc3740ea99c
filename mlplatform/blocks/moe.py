"""Mixture of experts: many MLPs, of which each token uses a few."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.activations import ACTIVATIONS
from mlplatform.registry import Activation, NonNegativeFloat, Positive, Spec, block

GROUPED_ALIGNMENT = 16
"""`F.grouped_mm` wants rows of a multiple of this many bytes."""


class Experts(nn.Module):
    """The experts' gated MLPs, their matrices stacked: gate, up (experts, width, dim), down (experts, dim, width)."""

    def __init__(self, dim: int, experts: int, width: int, activation: str) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, width, dim))
        self.up = nn.Parameter(torch.empty(experts, width, dim))
        self.down = nn.Parameter(torch.empty(experts, dim, width))
        self.activation = ACTIVATIONS[activation]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for matrix in (self.gate, self.up, self.down):
            nn.init.normal_(matrix, std=0.02)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows (tokens, dim) sorted by expert, `counts` (experts,) of them each -> (tokens, dim)"""
        if rows.is_cuda or self._aligned(rows):
            return self.grouped(rows, counts)
        return self.loop(rows, counts)

    def _aligned(self, rows: Tensor) -> bool:
        return all(m.shape[-1] * rows.element_size() % GROUPED_ALIGNMENT == 0 for m in (self.gate, self.down))

    def grouped(self, rows: Tensor, counts: Tensor) -> Tensor:
        """All experts in three grouped matrix products."""
        ends = counts.cumsum(0).to(torch.int32)
        gate, up, down = (m.to(rows.dtype).transpose(1, 2) for m in (self.gate, self.up, self.down))
        hidden = self.activation(F.grouped_mm(rows, gate, offs=ends)) * F.grouped_mm(rows, up, offs=ends)
        return F.grouped_mm(hidden, down, offs=ends)

    def loop(self, rows: Tensor, counts: Tensor) -> Tensor:
        """One expert after the other: the reference, and the way for widths that can't be grouped."""
        parts = []
        for part, gate, up, down in zip(rows.split(counts.tolist()), self.gate, self.up, self.down, strict=True):
            parts.append(F.linear(self.activation(F.linear(part, gate)) * F.linear(part, up), down))
        return torch.cat(parts)


@block("mlp/moe")
class MixtureOfExperts(nn.Module):
    """Each token goes through its `top_k` experts, weighted by the router, and through the shared MLP if there is one.

    After a forward pass in training, `counts` holds the tokens each expert got, and `auxiliary` the sum of the
    load-balancing loss (arXiv:2101.03961) and the z-loss (arXiv:2202.08906) by their weights.

    Args:
        width: hidden features of one expert; HF's `moe_intermediate_size`.
        shared: an MLP every token uses.
        balance_weight, z_weight: of the auxiliary losses.
    """

    def __init__(
        self,
        dim: int,
        *,
        experts: Positive,
        top_k: Positive,
        width: Positive,
        activation: Activation = "silu",
        router: Annotated[Spec, "router"],
        shared: Annotated[Spec, "mlp"] | None = None,
        balance_weight: NonNegativeFloat = 0.0,
        z_weight: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.router = router.build(dim=dim, experts=experts, top_k=top_k)
        self.experts = Experts(dim, experts, width, activation)
        self.shared = shared.build(dim=dim) if shared else None
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.counts: Tensor | None = None
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        tokens = x.flatten(0, -2)
        weights, chosen, logits = self.router(tokens)
        places = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=logits.shape[-1])
        rows = places // chosen.shape[-1]
        mixed = self.experts(tokens[rows], counts) * weights.flatten()[places, None].to(x.dtype)
        result = torch.zeros_like(tokens, dtype=mixed.dtype).index_add(0, rows, mixed)
        if self.training:
            self.counts = counts.detach()
            self.auxiliary = self._auxiliary_loss(logits, counts)
        if self.shared is not None:
            result = result + self.shared(tokens)
        return result.view_as(x)

    def _auxiliary_loss(self, logits: Tensor, counts: Tensor) -> Tensor | None:
        if not self.balance_weight and not self.z_weight:
            return None
        share = counts / counts.sum()
        balance = logits.shape[-1] * (share * logits.softmax(-1).mean(0)).sum()
        return self.balance_weight * balance + self.z_weight * logits.logsumexp(-1).square().mean()
