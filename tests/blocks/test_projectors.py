"""Projectors: from one tower's vectors to another's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlplatform.errors import SpecError
from mlplatform.registry import Spec


def build(dim: int, out_dim: int, **fields: Any) -> Any:
    torch.manual_seed(0)
    return Spec.of(fields, "mlp", "projector").build(dim=dim, out_dim=out_dim)


@pytest.mark.parametrize("bias", [True, False])
def test_projector_is_two_layers_as_wide_as_what_comes_out(bias: bool) -> None:
    block = build(6, 10, kind="projector", activation="gelu_pytorch_tanh", bias=bias)
    x = torch.randn(2, 3, 6)
    inner = torch.nn.functional.gelu(block.up(x), approximate="tanh")
    torch.testing.assert_close(block(x), inner @ block.down.weight.t() + (block.down.bias if bias else 0))
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "up.weight": (10, 6),
        "down.weight": (10, 10),
        **({"up.bias": (10,), "down.bias": (10,)} if bias else {}),
    }


def test_grid_pool_averages_squares_of_patches() -> None:
    block = build(4, 5, kind="grid_pool", tokens=4, norm={"kind": "rms_norm", "eps": 1e-6})
    x = torch.randn(2, 36, 4)
    got = block(x)
    assert got.shape == (2, 4, 5)
    square = x.reshape(2, 6, 6, 4)[:, :3, 3:].mean((1, 2))  # the second token: the upper right
    normed = square / (square.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * block.norm.weight
    torch.testing.assert_close(got[:, 1], normed @ block.out.weight.t())


@pytest.mark.parametrize(("tokens", "patches", "told"), [(5, 0, "no square number"), (4, 30, "no square grid")])
def test_grid_pool_needs_squares(tokens: int, patches: int, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        build(4, 5, kind="grid_pool", tokens=tokens, norm={"kind": "rms_norm"})(torch.randn(1, patches, 4))
