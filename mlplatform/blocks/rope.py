"""Rotary position embedding (arXiv:2104.09864) and the ways to stretch it beyond the trained length."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import SpecError
from mlplatform.registry import Positive, PositiveFloat, Spec, block


class Scaling:
    """Changes the rotary frequencies; `attention` multiplies cosines and sines."""

    attention: float = 1.0

    def frequencies(self, theta: float, dim: int, length: int, device: torch.device) -> Tensor:
        """Return (dim / 2,) angles per position for a sequence of `length` tokens."""
        raise NotImplementedError


def base_frequencies(theta: float, dim: int, device: torch.device) -> Tensor:
    """Return theta^(-2i/dim) for i in 0 .. dim/2 - 1, in fp32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)


@block("rope_scaling/linear")
class Linear(Scaling):
    """Positions divided by `factor`. arXiv:2306.15595"""

    def __init__(self, context_length: int, *, factor: PositiveFloat) -> None:
        self.factor = factor

    def frequencies(self, theta: float, dim: int, length: int, device: torch.device) -> Tensor:
        return base_frequencies(theta, dim, device) / self.factor


@block("rope_scaling/dynamic")
class Dynamic(Scaling):
    """NTK-aware: theta grows with the length once it exceeds the trained one (HF's `dynamic`)."""

    def __init__(self, context_length: int, *, factor: PositiveFloat) -> None:
        self.factor, self.trained = factor, context_length

    def frequencies(self, theta: float, dim: int, length: int, device: torch.device) -> Tensor:
        ratio = self.factor * max(length, self.trained) / self.trained - (self.factor - 1)
        return base_frequencies(theta * ratio ** (dim / (dim - 2)), dim, device)


@block("rope_scaling/llama3")
class Llama3(Scaling):
    """Long wavelengths divided by `factor`, short ones kept, a ramp between. arXiv:2407.21783"""

    def __init__(
        self,
        context_length: int,
        *,
        factor: PositiveFloat,
        low_freq_factor: PositiveFloat = 1.0,
        high_freq_factor: PositiveFloat = 4.0,
        original_length: Positive = 8192,
    ) -> None:
        self.factor, self.low, self.high, self.original = factor, low_freq_factor, high_freq_factor, original_length

    def frequencies(self, theta: float, dim: int, length: int, device: torch.device) -> Tensor:
        frequencies = base_frequencies(theta, dim, device)
        turns = self.original * frequencies / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@block("rope_scaling/yarn")
class Yarn(Scaling):
    """Frequencies interpolated by a ramp between two turn counts, attention rescaled. arXiv:2309.00071

    Args:
        original_length: the length trained on; null for context_length.
        mscale, mscale_all_dim: DeepSeek's two-sided attention scale; both or neither.
        truncate: whether the ramp's ends are rounded to whole dimensions.
    """

    def __init__(
        self,
        context_length: int,
        *,
        factor: PositiveFloat,
        original_length: Positive | None = None,
        beta_fast: PositiveFloat = 32.0,
        beta_slow: PositiveFloat = 1.0,
        mscale: PositiveFloat | None = None,
        mscale_all_dim: PositiveFloat | None = None,
        attention_factor: PositiveFloat | None = None,
        truncate: bool = True,
    ) -> None:
        self.factor, self.truncate = factor, truncate
        self.original = original_length or context_length
        self.betas = (beta_fast, beta_slow)
        if attention_factor is None:
            attention_factor = self._scale(mscale or 1.0)
            if mscale and mscale_all_dim:
                attention_factor = self._scale(mscale) / self._scale(mscale_all_dim)
        self.attention = attention_factor

    def _scale(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    def frequencies(self, theta: float, dim: int, length: int, device: torch.device) -> Tensor:
        def dimension(turns: float) -> float:
            return dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = (dimension(turns) for turns in self.betas)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        steps = torch.arange(dim // 2, device=device, dtype=torch.float32)
        ramp = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
        frequencies = base_frequencies(theta, dim, device)
        return frequencies / self.factor * ramp + frequencies * (1 - ramp)


@block("rope/rope")
class Rope(nn.Module):
    """Turns each pair of query and key features by an angle proportional to the position.

    Args:
        theta: base of the frequencies, HF's `rope_theta`.
        fraction: the part of the head's features that turns, HF's `partial_rotary_factor`.
        features: how many turn, where that is stated instead; HF's `rotary_dim` (GPT-J, CodeGen).
        interleaved: pairs are neighbours (GPT-J) rather than the two halves (Llama).
    """

    def __init__(
        self,
        head_dim: int,
        context_length: int,
        *,
        theta: PositiveFloat = 10000.0,
        scaling: Annotated[Spec, "rope_scaling"] | None = None,
        fraction: PositiveFloat = 1.0,
        features: Positive | None = None,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.theta, self.interleaved = theta, interleaved
        self.dim = features or int(head_dim * fraction)
        if self.dim % 2 or not 2 <= self.dim <= head_dim:
            given = f"features={features}" if features else f"head_dim={head_dim} and fraction={fraction}"
            raise SpecError(f"{given} turn {self.dim} features; it must be an even number, from 2 to head_dim")
        self.scaling: Scaling | None = scaling.build(context_length=context_length) if scaling else None
        self.key = ("rope", theta, self.dim, interleaved, _freeze(scaling), context_length)

    def forward(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Turn q (batch, heads, length, head_dim) and k (batch, kv heads, length, head_dim)."""
        key = (*self.key, q.dtype)
        if key not in context.memo:
            context.memo[key] = self._tables(context, q.dtype)
        cos, sin = context.memo[key]
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def _tables(self, context: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        positions = context.positions
        if self.scaling is None:
            frequencies = base_frequencies(self.theta, self.dim, positions.device)
        else:
            past = context.cache.length if context.cache is not None else 0
            length = past + positions.shape[-1]
            frequencies = self.scaling.frequencies(self.theta, self.dim, length, positions.device)
        angles = (positions[..., None].float() * frequencies)[:, None]  # (batch, 1, length, dim / 2)
        scale = self.scaling.attention if self.scaling is not None else 1.0
        return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, rest = (x, None) if self.dim == x.shape[-1] else (x[..., : self.dim], x[..., self.dim :])
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return turned if rest is None else torch.cat((turned, rest), -1)


def _freeze(spec: Spec | None) -> str:
    return "" if spec is None else repr(sorted(spec.data.items()))
