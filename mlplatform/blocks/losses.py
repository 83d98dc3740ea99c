"""Loss sums over targets. Every loss here is a sum and a count: the mean is taken once, over the whole global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
CHUNK_BYTES = 32 * 2**20
"""Logits held at a time by `linear_cross_entropy_sum`."""


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum of -log p over targets in fp32, number of targets) for logits (..., classes) and labels (...).

    Labels of -100 are no targets.
    """
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
    return total, (labels != IGNORED).sum()


def linear_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `hidden @ weight.T + bias` without ever holding all logits.

    Only rows with a target are computed. The gradients are taken chunk by chunk in the forward pass, while the
    chunk's logits are at hand, so nothing is computed twice (as in arXiv:2410.10989).

    Args:
        hidden: (rows, dim). weight: (classes, dim). bias: (classes,). labels: (rows,) int, -100 for no target.

    Returns:
        (sum over targets in fp32, number of targets).
    """
    chosen = labels != IGNORED
    count = chosen.sum()
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden = hidden.to(dtype)
    rows = hidden[chosen]
    return _LinearCrossEntropy.apply(rows, weight, bias, labels[chosen]), count  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            cast = weight.to(hidden.dtype)
            needed = any(ctx.needs_input_grad)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            d_hidden = torch.empty_like(hidden) if needed else None
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if needed else None
            d_bias = torch.zeros_like(bias, dtype=torch.float32) if needed and bias is not None else None
            rows = max(1, CHUNK_BYTES // (hidden.element_size() * weight.shape[0]))
            for start in range(0, hidden.shape[0], rows):
                part, targets = hidden[start : start + rows], labels[start : start + rows, None]
                losses, d_logits = _softmax_losses(part, cast, bias, targets)
                total += losses
                if d_hidden is None or d_weight is None:
                    continue
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=torch.float32)
                torch.mm(d_logits, cast, out=d_hidden[start : start + rows])
                if d_weight.dtype == hidden.dtype:
                    d_weight.addmm_(d_logits.t(), part)
                else:
                    d_weight += d_logits.t() @ part
        if needed:
            d_weight = None if d_weight is None else d_weight.to(weight.dtype)
            ctx.save_for_backward(d_hidden, d_weight, None if bias is None or d_bias is None else d_bias.to(bias.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        scale = grads[0]
        return d_hidden * scale, d_weight * scale, None if d_bias is None else d_bias * scale, None


def _softmax_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum of the losses in fp32, their gradient by the logits (rows, classes) in the dtype of hidden).

    One pass of softmax over the logits, in fp32 whatever their dtype. The log of the normaliser comes from the largest
    probability, which is at least 1 / classes, so that the logits are read once more and no exponential is taken twice.
    """
    logits = hidden @ weight.t() if bias is None else torch.addmm(bias.to(hidden.dtype), hidden, weight.t())
    largest, place = logits.max(-1, keepdim=True)
    probabilities = torch.softmax(logits, -1, dtype=torch.float32)
    normaliser = largest.float() - probabilities.gather(-1, place).log()
    losses = normaliser - logits.gather(-1, targets).float()
    probabilities.scatter_(-1, targets, torch.expm1(-losses))
    return losses.sum(), probabilities.to(hidden.dtype)
