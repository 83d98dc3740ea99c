"""Where each layer puts its norms, with sublayers that can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.registry import Spec

DIM = 12
NORM = Spec.of({"kind": "rms_norm"}, "norm")
Part = Callable[[Tensor], Tensor]


def layer(kind: str, cross: bool = False, **fields: Any) -> nn.Module:
    data: dict[str, Any] = {
        "kind": kind,
        "attention": {"kind": "attention", "heads": 3},
        "mlp": {"kind": "mlp", "width": 7},
        **fields,
    }
    if cross:
        data["cross"] = {"kind": "cross_attention", "heads": 3}
    spec = Spec.of(data, "layer")
    return tiny.stirred(spec.build(dim=DIM, tower_norm=NORM, context_length=16, memory_dim=DIM, index=0))


def run(block: nn.Module, formula: Callable[..., Tensor], cross: bool) -> None:
    x = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    memory = torch.randn(2, 4, DIM, generator=torch.Generator().manual_seed(1))

    def context() -> Context:
        return Context(torch.arange(5)[None], memory=memory)

    def part(name: str) -> Part:
        module = block.get_submodule(name)
        return (lambda x: module(x, context())) if name in ("attention", "cross") else module

    names = [name for name, module in block.named_children() if module is not None and name != "dropout"]
    parts = {name: part(name) for name in names}
    torch.testing.assert_close(block(x, context()), formula(x, parts, cross), rtol=1e-5, atol=1e-5)


def pre_norm(x: Tensor, p: dict[str, Part], cross: bool) -> Tensor:
    x = x + p["attention"](p["attention_norm"](x))
    if cross:
        x = x + p["cross"](p["cross_norm"](x))
    return x + p["mlp"](p["mlp_norm"](x))


def post_norm(x: Tensor, p: dict[str, Part], cross: bool) -> Tensor:
    x = p["attention_norm"](x + p["attention"](x))
    if cross:
        x = p["cross_norm"](x + p["cross"](x))
    return p["mlp_norm"](x + p["mlp"](x))


def sandwich_norm(x: Tensor, p: dict[str, Part], cross: bool) -> Tensor:
    x = x + p["attention_output_norm"](p["attention"](p["attention_norm"](x)))
    if cross:
        x = x + p["cross_output_norm"](p["cross"](p["cross_norm"](x)))
    return x + p["mlp_output_norm"](p["mlp"](p["mlp_norm"](x)))


def output_norm(x: Tensor, p: dict[str, Part], cross: bool) -> Tensor:
    x = x + p["attention_norm"](p["attention"](x))
    if cross:
        x = x + p["cross_norm"](p["cross"](x))
    return x + p["mlp_norm"](p["mlp"](x))


@pytest.mark.parametrize("formula", [pre_norm, post_norm, sandwich_norm, output_norm])
@pytest.mark.parametrize("cross", [False, True])
def test_norms_in_their_places(formula: Callable[..., Tensor], cross: bool) -> None:
    run(layer(formula.__name__, cross), formula, cross)


@pytest.mark.parametrize("formula", [pre_norm, post_norm, sandwich_norm, output_norm])
def test_a_text_by_itself_goes_past_the_cross(formula: Callable[..., Tensor]) -> None:
    block, context = layer(formula.__name__, cross=True), Context(torch.arange(5)[None])
    x = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    parts: dict[str, Any] = {name: module for name, module in block.named_children() if module is not None}
    parts["attention"] = lambda y: block.attention(y, context)  # type: ignore[operator]
    torch.testing.assert_close(block(x, context), formula(x, parts, False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_parallel_sublayers_read_the_same(shared: bool) -> None:
    def parallel(x: Tensor, p: dict[str, Part], cross: bool) -> Tensor:
        second = p["attention_norm" if shared else "mlp_norm"]
        return x + p["attention"](p["attention_norm"](x)) + p["mlp"](second(x))

    block = layer("parallel", shared_norm=shared)
    run(block, parallel, False)
    assert sum(p.shape == (DIM,) and "norm" in n for n, p in block.named_parameters()) == (1 if shared else 2)


@pytest.mark.parametrize("kind", ["pre_norm", "post_norm", "sandwich_norm", "output_norm", "parallel"])
def test_dropout_is_on_what_is_added(kind: str) -> None:
    block = layer(kind, dropout=0.999999)
    x = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    context = Context(torch.arange(5)[None])
    assert not torch.allclose(block(x, context), x)
    block.train()
    torch.manual_seed(0)
    left = block(x, context)
    if kind == "post_norm":
        left, x = left / left.norm(dim=-1, keepdim=True), block.mlp_norm(block.attention_norm(x))  # type: ignore[operator]
        x = x / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(left, x, rtol=1e-4, atol=1e-4)


def test_computing_a_layer_again_in_the_backward_pass_gives_the_same_gradient() -> None:
    spec = {"kind": "single_tower", "trunk": tiny.tower(), "head": {"kind": "lm_head"}}
    from mlplatform.models import build

    gradients = []
    for checkpointed in (False, True):
        model = tiny.stirred(build(spec)).train()
        model.trunk.checkpointed = checkpointed  # type: ignore[union-attr, assignment]
        tokens = torch.arange(12).view(2, 6)
        model(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)
