"""Mixture of experts: many MLPs, of which each token uses a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.activations import ACTIVATIONS
from mlplatform.registry import Activation, NonNegativeFloat, Positive, Spec, block

GROUPED_ALIGNMENT = 16
"""`F.grouped_mm` wants rows of a multiple of this many bytes."""


class Experts(nn.Module):
    """The experts' gated MLPs, their matrices stacked: gate, up (experts, width, dim), down (experts, dim, width)."""

    splits: ClassVar[dict[str, str]] = {"": "experts"}

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

    def divisible(self) -> dict[str, int]:
        """Return what ranks that divide it must divide."""
        return {"width": self.gate.shape[1]}

    @property
    def matrices(self) -> list[Tensor]:
        """gate, up and down: of a layer divided among ranks, what this one holds."""
        stacked: list[Any] = [self.gate, self.up, self.down]
        return [m.to_local() if hasattr(m, "to_local") else m for m in stacked]

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows (tokens, dim) sorted by expert, `counts` (experts,) of them each -> (tokens, dim)"""
        if rows.is_cuda or self._aligned(rows):
            return self.grouped(rows, counts)
        return self.loop(rows, counts)

    def _aligned(self, rows: Tensor) -> bool:
        return all(m.shape[-1] * rows.element_size() % GROUPED_ALIGNMENT == 0 for m in self.matrices)

    def grouped(self, rows: Tensor, counts: Tensor) -> Tensor:
        """All experts in three grouped matrix products."""
        ends = counts.cumsum(0).to(torch.int32)
        gate, up, down = (m.to(rows.dtype).transpose(1, 2) for m in self.matrices)
        hidden = self.activation(F.grouped_mm(rows, gate, offs=ends)) * F.grouped_mm(rows, up, offs=ends)
        return F.grouped_mm(hidden, down, offs=ends)

    def loop(self, rows: Tensor, counts: Tensor) -> Tensor:
        """One expert after the other: the reference, and the way for widths that can't be grouped."""
        parts = []
        for part, gate, up, down in zip(rows.split(counts.tolist()), *self.matrices, strict=True):
            parts.append(F.linear(self.activation(F.linear(part, gate)) * F.linear(part, up), down))
        return torch.cat(parts)


@block("mlp/moe")
class MixtureOfExperts(nn.Module):
    """Each token goes through its `top_k` experts, weighted by the router, and through the shared MLP if there is one.

    A forward pass in training leaves `auxiliary`, the load-balancing loss (arXiv:2101.03961; 1 when even) and the
    z-loss (arXiv:2202.08906) by their weights, and adds the tokens each expert got to `counts` until `settle`.

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
        self.load: Tensor | None = None
        """Tokens each expert got in the last optimizer step."""
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        tokens = x.flatten(0, -2)
        weights, chosen, logits = self.router(tokens)
        places = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=logits.shape[-1])
        rows = places // chosen.shape[-1]
        mixed = self.experts(tokens.index_select(0, rows), counts)
        mixed = mixed * weights.flatten().index_select(0, places)[:, None].to(mixed.dtype)
        result = torch.zeros_like(tokens, dtype=mixed.dtype).index_add(0, rows, mixed)
        if self.training:
            self.counts = counts if self.counts is None else self.counts + counts
            self.auxiliary = self._auxiliary_loss(logits, counts)
        if self.shared is not None:
            result = result + self.shared(tokens)
        return result.view_as(x)

    def settle(self, total: Callable[[Tensor], Tensor]) -> None:
        """End an optimizer step: let the router act on the tokens each expert got, `total` over all ranks."""
        if self.counts is not None:
            self.load = total(self.counts)
            if any(p.requires_grad for p in self.router.parameters()):  # a frozen router stays as it is
                self.router.settle(self.load)
        self.counts = None

    def _auxiliary_loss(self, logits: Tensor, counts: Tensor) -> Tensor | None:
        if not self.balance_weight and not self.z_weight:
            return None
        share = counts / counts.sum()
        balance = logits.shape[-1] * (share * logits.softmax(-1).mean(0)).sum()
        return self.balance_weight * balance + self.z_weight * logits.logsumexp(-1).square().mean()


def mixtures(model: nn.Module) -> Iterator[tuple[str, MixtureOfExperts]]:
    """Yield (name, block) for every mixture of experts in a model."""
    for name, module in model.named_modules():
        if isinstance(module, MixtureOfExperts):
            yield name, module


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """Return the sum of what the last forward pass left to be added to the mean loss; None where there is none."""
    losses = [moe.auxiliary for _, moe in mixtures(model) if moe.auxiliary is not None]
    return torch.stack(losses).sum() if losses else None


def expert_metrics(model: nn.Module) -> dict[str, float]:
    """Return, per mixture, the busiest and the idlest expert's tokens in the last step, 1 for an even share."""
    values: dict[str, float] = {}
    for name, moe in mixtures(model):
        if moe.load is not None:
            share = moe.load / moe.load.sum().clamp(min=1) * len(moe.load)
            values |= {f"experts/{name}/busiest": share.max().item(), f"experts/{name}/idlest": share.min().item()}
    return values
