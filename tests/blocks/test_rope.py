"""Rotary positions as complex numbers, and each way of stretching them by its published formula."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mlplatform.context import Cache, Context
from mlplatform.errors import SpecError
from mlplatform.registry import Spec

DIM, LENGTH, TRAINED = 8, 11, 64


def rope(dim: int = DIM, context_length: int = TRAINED, **fields: Any) -> Any:
    return Spec.of({"kind": "rope", **fields}, "rope").build(head_dim=dim, context_length=context_length)


def heads(seed: int, heads: int = 2, dim: int = DIM, length: int = LENGTH) -> Tensor:
    return torch.randn(3, heads, length, dim, generator=torch.Generator().manual_seed(seed))


def context(positions: Tensor | None = None, length: int = LENGTH) -> Context:
    return Context(torch.arange(length)[None] if positions is None else positions)


def turned(x: Tensor, positions: Tensor, frequencies: list[float], interleaved: bool, scale: float = 1.0) -> Tensor:
    """Multiply each pair of features, as a complex number, by e^(i position frequency): one number at a time."""
    out = x.clone()
    half = len(frequencies)
    for i, frequency in enumerate(frequencies):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        for row in range(x.shape[0]):
            for place in range(x.shape[2]):
                position = int(positions[min(row, len(positions) - 1), place])
                turn = cmath.exp(1j * position * frequency) * scale
                z = torch.complex(x[row, :, place, a], x[row, :, place, b]) * turn
                out[row, :, place, a], out[row, :, place, b] = z.real, z.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("fraction", "dim"), [(1.0, 8), (0.5, 4), (0.25, 2)])
@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_rotation_is_a_complex_product(interleaved: bool, fraction: float, dim: int, theta: float) -> None:
    block = rope(theta=theta, fraction=fraction, interleaved=interleaved)
    q, k = heads(0, 4), heads(1)
    positions = torch.stack([torch.arange(LENGTH), torch.arange(5, 5 + LENGTH), torch.arange(LENGTH).flip(0)])
    got_q, got_k = block(q, k, context(positions))
    frequencies = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    torch.testing.assert_close(got_q[..., :dim], turned(q[..., :dim], positions, frequencies, interleaved))
    torch.testing.assert_close(got_k[..., :dim], turned(k[..., :dim], positions, frequencies, interleaved))
    assert torch.equal(got_q[..., dim:], q[..., dim:])


def test_scores_depend_on_distances_only() -> None:
    block, q, k = rope(), heads(0), heads(1)

    def scores(shift: int) -> Tensor:
        turned_q, turned_k = block(q, k, context(torch.arange(shift, shift + LENGTH)[None]))
        return turned_q @ turned_k.mT

    torch.testing.assert_close(scores(0), scores(1000), rtol=1e-3, atol=1e-3)


def base(theta: float = 10000.0) -> list[float]:
    return [theta ** (-2 * i / DIM) for i in range(DIM // 2)]


def test_linear() -> None:
    check({"kind": "linear", "factor": 4.0}, [f / 4 for f in base()])


@pytest.mark.parametrize("length", [LENGTH, 64, 100])
def test_dynamic_grows_theta_beyond_the_trained_length(length: int) -> None:
    """NTK-aware scaling, as Hugging Face writes it: theta times a power of the overshoot."""
    over = max(length, TRAINED)
    grown = 10000.0 * (2.0 * over / TRAINED - 1.0) ** (DIM / (DIM - 2))
    check({"kind": "dynamic", "factor": 2.0}, base(grown), length=length)


def test_dynamic_counts_cached_tokens() -> None:
    block, cache = rope(scaling={"kind": "dynamic", "factor": 2.0}), Cache()
    cache.length = 99
    one = heads(0, length=1)
    with_cache = Context(torch.tensor([[99]]), cache=cache)
    whole = heads(0, length=100).clone()
    whole[:, :, -1:] = one
    torch.testing.assert_close(block(one, one, with_cache)[0], block(whole, whole, context(length=100))[0][:, :, -1:])


def test_llama3_keeps_short_waves_divides_long_ones_and_ramps_between() -> None:
    low, high, factor, original = 1.0, 4.0, 8.0, 100
    want = []
    for frequency in base():
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            want.append(frequency)
        elif wavelength > original / low:
            want.append(frequency / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            want.append((1 - smooth) * frequency / factor + smooth * frequency)
    assert want[0] == base()[0]
    assert want[-1] == base()[-1] / factor
    assert base()[1] / factor < want[1] < base()[1]
    fields = {"low_freq_factor": low, "high_freq_factor": high, "original_length": original}
    check({"kind": "llama3", "factor": factor, **fields}, want)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramps_between_two_turn_counts(truncate: bool) -> None:
    """arXiv:2309.00071, section 3.2: by how often each dimension turns over the trained length."""
    factor, fast, slow, original = 4.0, 32.0, 1.0, 512

    def dimension(turns: float) -> float:
        return DIM * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = dimension(fast), dimension(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    want = []
    for i, frequency in enumerate(base()):
        ramp = min(max((i - max(low, 0)) / (min(high, DIM - 1) - max(low, 0)), 0), 1)
        want.append(frequency * (1 - ramp) + frequency / factor * ramp)
    check(
        {"kind": "yarn", "factor": factor, "original_length": original, "truncate": truncate},
        want,
        scale=0.1 * math.log(4) + 1,
    )


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 0.7}, 0.1 * 0.7 * math.log(4) + 1),
        ({"mscale": 0.7, "mscale_all_dim": 0.3}, (0.07 * math.log(4) + 1) / (0.03 * math.log(4) + 1)),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_yarn_scales_attention(fields: dict[str, float], scale: float) -> None:
    block = rope(scaling={"kind": "yarn", "factor": 4.0, **fields})
    x = heads(0)
    norms = block(x, x, context())[0].norm(dim=-1) / x.norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, scale))


def check(scaling: dict[str, Any], frequencies: list[float], length: int = LENGTH, scale: float = 1.0) -> None:
    x = heads(3, length=length)
    got, _ = rope(scaling=scaling)(x, x, context(length=length))
    want = turned(x, torch.arange(length)[None], frequencies, False, scale)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_tables_are_shared_within_a_pass_by_layers_alike() -> None:
    first, same, other, stretched = rope(), rope(), rope(theta=7.0), rope(scaling={"kind": "linear", "factor": 2.0})
    x, shared = heads(0), context()
    outs = [block(x, x, shared)[0] for block in (first, same, other, stretched)]
    assert len(shared.memo) == 3
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[3])


def test_angles_are_computed_in_fp32() -> None:
    """Position 2000 times a frequency near one, in bf16, would be off by whole turns."""
    x = heads(0, length=1)
    far = context(torch.tensor([[2001]]))
    exact = rope()(x, x, far)[0]
    rough = rope()(x.bfloat16(), x.bfloat16(), context(torch.tensor([[2001]])))[0]
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("dim", "fraction"), [(5, 1.0), (8, 1.5), (8, 0.1), (6, 0.5)])
def test_features_that_cannot_be_paired(dim: int, fraction: float) -> None:
    with pytest.raises(SpecError, match=f"head_dim={dim} and fraction={fraction}"):
        rope(dim, fraction=fraction)
