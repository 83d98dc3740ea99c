"""Routers of a mixture of experts: which experts a token goes to, and with what weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.errors import SpecError
from mlplatform.registry import NonNegativeFloat, Positive, PositiveFloat, block


class Router(nn.Module):
    """What routers share: one logit per expert and token, in fp32."""

    def __init__(self, dim: int, experts: int, top_k: int) -> None:
        super().__init__()
        if top_k > experts:
            raise SpecError(f"top_k={top_k} is more than experts={experts}")
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def settle(self, counts: Tensor) -> None:
        """Learn from the tokens each expert got in an optimizer step."""

    def logits(self, x: Tensor) -> Tensor:
        """(tokens, dim) -> (tokens, experts) in fp32"""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


@block("router/softmax_router")
class SoftmaxRouter(Router):
    """Weights are a softmax over all experts; the top_k are taken (Mixtral, Qwen-MoE). arXiv:2401.04088

    Args:
        renormalise: the chosen weights sum to one; HF's `norm_topk_prob`.
    """

    def __init__(self, dim: int, experts: int, top_k: int, *, renormalise: bool = True) -> None:
        super().__init__(dim, experts, top_k)
        self.renormalise = renormalise

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, dim) -> weights and expert numbers (tokens, top_k), logits (tokens, experts)"""
        logits = self.logits(x)
        weights, chosen = logits.softmax(-1).topk(self.top_k, -1)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen, logits


@block("router/sigmoid_router")
class SigmoidRouter(Router):
    """Each expert's weight is a sigmoid of its own; a correction helps choose but does not weigh. arXiv:2412.19437

    Args:
        correction: a per-expert number added when choosing (HF's `expert_bias`, `e_score_correction_bias`).
        renormalise: the chosen weights sum to one before `scale`.
        scale: factor on the weights; HF's `route_scale`, `routed_scaling_factor`.
        correction_rate: after each optimizer step the correction of experts with fewer tokens than the mean rises by
            this, that of the others falls: balance without a loss. arXiv:2408.15664
        groups, top_groups: experts in equal groups, of which only the best by their two best scores are open.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int,
        *,
        correction: bool = True,
        correction_rate: NonNegativeFloat = 0.0,
        renormalise: bool = True,
        scale: PositiveFloat = 1.0,
        groups: Positive = 1,
        top_groups: Positive = 1,
    ) -> None:
        super().__init__(dim, experts, top_k)
        if experts % groups or top_groups > groups:
            raise SpecError(f"experts={experts}, groups={groups}, top_groups={top_groups} don't divide up")
        if top_k > experts // groups * top_groups:
            raise SpecError(f"top_k={top_k} is more than the {experts // groups * top_groups} experts of top_groups")
        if correction_rate and not correction:
            raise SpecError("correction_rate needs correction: true")
        self.correction_rate = correction_rate
        self.renormalise, self.scale, self.groups, self.top_groups = renormalise, scale, groups, top_groups
        self.correction = nn.Parameter(torch.zeros(experts), requires_grad=False) if correction else None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if getattr(self, "correction", None) is not None:
            nn.init.zeros_(self.correction)  # type: ignore[arg-type]

    @torch.no_grad()
    def settle(self, counts: Tensor) -> None:
        if self.correction is not None and self.correction_rate:
            self.correction += self.correction_rate * torch.sign(counts.float().mean() - counts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, dim) -> weights and expert numbers (tokens, top_k), logits (tokens, experts)"""
        logits = self.logits(x)
        scores = logits.sigmoid()
        merit = scores if self.correction is None else scores + self.correction.float()
        if self.top_groups < self.groups:
            merit = self._open_groups(merit)
        chosen = merit.topk(self.top_k, -1).indices
        weights = scores.gather(-1, chosen)
        if self.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scale, chosen, logits

    def _open_groups(self, merit: Tensor) -> Tensor:
        grouped = merit.unflatten(-1, (self.groups, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1).topk(self.top_groups, -1).indices
        is_open = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, True)
        return grouped.masked_fill(~is_open[..., None], float("-inf")).flatten(-2)
