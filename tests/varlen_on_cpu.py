"""torch's `varlen_attn` on CPUs: formulas for its two kernels, which need CUDA; its checks and autograd are its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mlplatform.blocks import documents


def kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packed documents be attended to by `varlen_attn`, as they are on CUDA."""
    _register()
    monkeypatch.setattr(documents, "kernel_takes", lambda _: True)


class Stretch:
    """Softmax attention within one document: (tokens, heads, head_dim); `window` is (before, after), -1 for all."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: list[int], causal: bool) -> None:
        self.groups, self.scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5 if scale is None else scale
        self.q = q.transpose(0, 1)
        self.k, self.v = (t.transpose(0, 1).repeat_interleave(self.groups, 0) for t in (k, v))
        ahead = torch.arange(len(q)) - torch.arange(len(q))[:, None]
        before, after = (len(q) if side == -1 else side for side in window)
        seen = (ahead <= after) & (-ahead <= before)
        assert not causal or not (seen & (ahead > 0)).any()
        scores = self.q @ self.k.mT * self.scale
        self.weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        self.out = (self.weights @ self.v).transpose(0, 1)

    def gradients(self, grad: Tensor) -> list[Tensor]:
        """Return those of q, k and v."""
        grad = grad.transpose(0, 1)
        of_weights = grad @ self.v.mT
        of_scores = self.weights * (of_weights - (of_weights * self.weights).sum(-1, keepdim=True)) * self.scale
        of_q, of_k, of_v = of_scores @ self.k, of_scores.mT @ self.q, self.weights.mT @ grad
        shared = [t.unflatten(0, (-1, self.groups)).sum(1) for t in (of_k, of_v)]
        return [t.transpose(0, 1) for t in (of_q, *shared)]


def _cut(ends: Tensor, *joined: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(t.split(ends.diff().tolist()) for t in joined), strict=True)


def contract(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> None:
    """Hold what the kernel is given to what it documents and what its C++ checks."""
    assert q.dtype == k.dtype == v.dtype
    assert q.ndim == k.ndim == v.ndim == 3
    assert k.shape == v.shape
    assert all(t.stride(-1) == 1 for t in (q, k, v))
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q.is_contiguous()
    assert (int(cu_q[0]), int(cu_q[-1])) == (0, len(q))
    assert torch.equal(cu_q, cu_k)
    assert max_q == max_k == int(cu_q.diff().max())


@cache
def _register() -> None:
    from torch.nn.attention import varlen

    @varlen._varlen_attn.register_kernel("cpu")
    def forward(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, is_causal: bool = False,
        scale: float | None = None, window_size: Any = None, *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        contract(q, k, v, cu_q, cu_k, max_q, max_k)
        parts = _cut(cu_q, q, k, v)
        out = torch.cat([Stretch(q, k, v, scale, window_size, is_causal).out for q, k, v in parts])
        return out, q.new_zeros(q.shape[1], len(q), dtype=torch.float), torch.zeros(2, dtype=torch.uint64)

    @varlen._varlen_attn_backward.register_kernel("cpu")
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
        max_q: int, max_k: int, is_causal: bool, rng: Tensor, scale: float | None = None, window_size: Any = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        contract(q, k, v, cu_q, cu_k, max_q, max_k)
        parts = _cut(cu_q, q, k, v, grad)
        found = [Stretch(q, k, v, scale, window_size, is_causal).gradients(own) for q, k, v, own in parts]
        return tuple(torch.cat(one) for one in zip(*found, strict=True))
