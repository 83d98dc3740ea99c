"""Norms against their formulas, in fp64 and under bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlplatform.blocks.norms import LayerNorm, RMSNorm


def data(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1).to(dtype)


def weights(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(eps: float, bias: bool) -> None:
    norm, x = LayerNorm(16, eps=eps, bias=bias), data()
    weights(norm)
    y = x.double()
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + eps).sqrt() * norm.weight
    torch.testing.assert_close(norm(x).double(), y + (norm.bias if bias else 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("unit_offset", [True, False])
def test_rms_norm(eps: float, unit_offset: bool) -> None:
    norm, x = RMSNorm(16, eps=eps, unit_offset=unit_offset), data()
    weights(norm)
    y = x.double()
    y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * (norm.weight.double() + unit_offset)
    torch.testing.assert_close(norm(x).double(), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit_offset", [True, False])
def test_rms_norm_starts_as_a_plain_division(unit_offset: bool) -> None:
    norm, x = RMSNorm(16, unit_offset=unit_offset), data()
    assert set(norm.weight.tolist()) == {0.0 if unit_offset else 1.0}
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(3, 5), rtol=1e-4, atol=1e-4)


def test_statistics_are_taken_in_fp32() -> None:
    """A mean of squares of 4096 numbers of size 300 overflows fp16 and loses digits in bf16."""
    norm = RMSNorm(4096)
    x = torch.full((2, 4096), 300.0)
    for dtype in (torch.float16, torch.bfloat16):
        out = norm(x.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), torch.ones(2, 4096), rtol=1e-2, atol=1e-2)
