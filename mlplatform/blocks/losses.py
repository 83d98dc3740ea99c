"""Loss sums over targets. Every loss here is a sum and a count: the mean is taken once, over the whole global batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
CHUNK_BYTES = 64 * 2**20
"""Logits held at a time by `linear_cross_entropy_sum`."""
CACHE_BYTES = 2 * 2**20
"""Probabilities at hand at a time on a CPU: what its cache keeps between two reads."""
SMALLEST = 1e-30
"""Below it the logarithm of a probability in fp32 loses digits."""


class Ranks(Protocol):
    """Processes that hold the classes of one matrix among them, equally many each."""

    first: int
    """The number of the first class held here."""

    def largest(self, tensor: Tensor) -> Tensor:
        """Return the largest of all ranks' numbers."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all ranks' numbers."""
        ...


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum of -log p over targets in fp32, number of targets) for logits (..., classes) and labels (...).

    Labels of -100 are no targets.
    """
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
    return total, (labels != IGNORED).sum()


def linear_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ranks: Ranks | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `hidden @ weight.T + bias` without ever holding all logits.

    Only rows with a target are computed. The gradients are taken chunk by chunk in the forward pass, while the
    chunk's logits are at hand, so nothing is computed twice (as in arXiv:2410.10989).

    Args:
        hidden: (rows, dim). weight: (classes, dim). bias: (classes,). labels: (rows,) int, -100 for no target.
        ranks: those that divide the classes: weight and bias are this rank's, and all call with the same rows.

    Returns:
        (sum over targets in fp32, number of targets).
    """
    chosen = labels != IGNORED
    count = chosen.sum()
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden = hidden.to(dtype)
    rows = hidden[chosen]
    return _LinearCrossEntropy.apply(rows, weight, bias, labels[chosen], ranks), count  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ranks: Ranks | None
    ) -> Tensor:
        needed = any(ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, enabled=False):
            cast = weight.to(hidden.dtype)
            shift = None if bias is None else bias.to(hidden.dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            sums = _Gradients(hidden, bias is not None) if needed else None
            for start, part, logits in _chunks(hidden, cast, shift):
                targets = labels[start : start + len(part), None]
                total += _to_gradients(logits, targets) if ranks is None else _own_gradients(logits, targets, ranks)
                if sums is not None:
                    sums.add(start, part, cast, logits)
        if sums is not None:
            if ranks is not None and len(hidden):
                sums.hidden = ranks.sum(sums.hidden)
            ctx.save_for_backward(sums.hidden, *sums.of(weight, bias))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place: these tensors are nobody else's. A second backward is refused by autograd, which sees the change.
        hidden, weight, bias = ctx.saved_tensors
        return (
            *(None if gradient is None else gradient.mul_(grads[0]) for gradient in (hidden, weight, bias)),
            None,
            None,
        )


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (first row, rows of hidden, their logits) in one buffer, so that memory is asked for once."""
    rows = max(1, min(len(hidden), CHUNK_BYTES // (hidden.element_size() * len(weight))))
    buffer = hidden.new_empty(rows, len(weight))
    for start in range(0, len(hidden), rows):
        part = hidden[start : start + rows]
        logits = buffer[: len(part)]
        if bias is None:
            torch.mm(part, weight.t(), out=logits)
        else:
            torch.addmm(bias, part, weight.t(), out=logits)
        yield start, part, logits


class _Gradients:
    """The gradients of hidden, weight and bias, the last two summed over chunks in fp32; None before the first one."""

    def __init__(self, hidden: Tensor, biased: bool) -> None:
        self.hidden = torch.empty_like(hidden)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.biased = biased

    def add(self, start: int, part: Tensor, weight: Tensor, logits: Tensor) -> None:
        torch.mm(logits, weight, out=self.hidden[start : start + len(part)])
        if self.biased:
            summed = logits.sum(0, dtype=torch.float32)
            self.bias = summed if self.bias is None else self.bias.add_(summed)
        if self.weight is None:  # taken over, not added to zeros: the table's gradient is the largest tensor of a step
            self.weight = (logits.t() @ part).float()
        elif part.dtype == torch.float32:
            self.weight.addmm_(logits.t(), part)
        else:
            self.weight += logits.t() @ part

    def of(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of the two, in their dtypes."""
        own = [
            None if p is None else torch.zeros_like(p) if found is None else found.to(p.dtype)
            for p, found in ((weight, self.weight), (bias, self.bias))
        ]
        return own[0], own[1]  # type: ignore[return-value]


def _to_gradients(logits: Tensor, targets: Tensor) -> Tensor:
    """Replace logits (rows, classes) by the gradients of their losses, and return the sum of the losses in fp32.

    One pass of softmax, in fp32 whatever the logits' dtype, a few rows at a time: what lies between stays in the cache.
    The losses come from its probabilities; only where one of them is too small for fp32, from the logits again.
    """
    rows = len(logits) if logits.is_cuda else max(1, CACHE_BYTES // (4 * logits.shape[1]))
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for part, target in zip(logits.split(rows), targets.split(rows), strict=True):
        probabilities = torch.softmax(part, -1, dtype=torch.float32)
        chosen = probabilities.gather(-1, target)
        losses = -chosen.log()
        if not bool((chosen > SMALLEST).all()):  # also where they are not numbers
            losses = part.float().logsumexp(-1, keepdim=True) - part.gather(-1, target).float()
        total += losses.sum()
        part.copy_(probabilities.scatter_(-1, target, chosen - 1))
    return total


def _own_gradients(logits: Tensor, targets: Tensor, ranks: Ranks) -> Tensor:
    """Do the same where each rank has the logits of its own classes alone."""
    scores = logits.float()
    top = ranks.largest(scores.amax(-1, keepdim=True))
    places = targets - ranks.first
    here = (places >= 0) & (places < logits.shape[1])
    places = places.clamp(0, logits.shape[1] - 1)
    chosen = scores.gather(-1, places).where(here, 0.0)
    weights = (scores - top).exp()
    total, chosen = ranks.sum(torch.cat((weights.sum(-1, keepdim=True), chosen), -1)).split(1, -1)
    logits.copy_((weights / total).scatter_add_(-1, places, -here.float()))
    return (top + total.log() - chosen).sum()
