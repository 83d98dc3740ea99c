"""Feed-forward blocks and activations against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor

from mlplatform.blocks.activations import ACTIVATIONS
from mlplatform.blocks.mlp import MLP, GatedMLP
from mlplatform.registry.vocabulary import Activation

C = math.sqrt(2 / math.pi)
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x * x * (x > 0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * x**3))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "linear": lambda x: x,
}


def test_every_activation_a_yaml_may_name_has_a_formula_here() -> None:
    assert set(Activation.__args__) == set(ACTIVATIONS) == set(FORMULAS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(FORMULAS))
def test_activations(name: str) -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), FORMULAS[name](x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [None, 5])
@pytest.mark.parametrize("out_dim", [0, 3])
def test_mlp(bias: bool, width: int | None, out_dim: int) -> None:
    block = tiny.stirred(MLP(6, out_dim, width=width, activation="relu", bias=bias))
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    weights = {name: p.double() for name, p in block.named_parameters()}
    hidden = torch.einsum("wd,bld->blw", weights["up.weight"], x.double()) + (weights["up.bias"] if bias else 0)
    assert hidden.shape[-1] == (width or 24)
    want = torch.einsum("dw,blw->bld", weights["down.weight"], hidden.clamp(min=0)) + (
        weights["down.bias"] if bias else 0
    )
    assert want.shape[-1] == (out_dim or 6)
    torch.testing.assert_close(block(x).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_gated_mlp(bias: bool) -> None:
    block = tiny.stirred(GatedMLP(6, width=5, activation="silu", bias=bias))
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))

    def through(name: str, x: Tensor) -> Tensor:
        module = block.get_submodule(name)
        return x @ module.weight.double().T + (module.bias.double() if bias else 0)  # type: ignore[union-attr, operator]

    gate = through("gate", x.double())
    want = through("down", gate * torch.sigmoid(gate) * through("up", x.double()))
    torch.testing.assert_close(block(x).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_dropout_only_in_training(kind: type) -> None:
    block, x = tiny.stirred(kind(6, width=50, dropout=0.5)), torch.ones(1, 6)
    assert torch.equal(block(x), block(x))
    block.train()
    torch.manual_seed(0)
    assert not torch.equal(block(x), block(x))
