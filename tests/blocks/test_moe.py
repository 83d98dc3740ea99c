"""Mixture of experts and its routers, one token and one expert at a time."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from mlplatform.blocks.moe import MixtureOfExperts
from mlplatform.blocks.routers import SigmoidRouter, SoftmaxRouter
from mlplatform.errors import SpecError
from mlplatform.registry import Spec

DIM, EXPERTS = 8, 6


def mixture(router: dict[str, Any] | None = None, **fields: Any) -> MixtureOfExperts:
    data = {"kind": "moe", "experts": EXPERTS, "top_k": 2, "width": 8, "router": router or {"kind": "softmax_router"}}
    return tiny.stirred(Spec.of(data | fields, "mlp").build(dim=DIM))  # type: ignore[return-value]


def tokens(count: int = 20) -> Tensor:
    return torch.randn(2, count // 2, DIM, generator=torch.Generator().manual_seed(0))


def one_expert(block: MixtureOfExperts, x: Tensor, expert: int) -> Tensor:
    gate, up, down = (matrix[expert] for matrix in (block.experts.gate, block.experts.up, block.experts.down))
    return down @ (F.silu(gate @ x) * (up @ x))


def by_hand(block: MixtureOfExperts, x: Tensor) -> Tensor:
    rows = []
    weights, chosen, _ = block.router(x.flatten(0, -2))
    for row, scales, numbers in zip(x.flatten(0, -2), weights, chosen, strict=True):
        rows.append(sum(s * one_expert(block, row, int(n)) for s, n in zip(scales, numbers, strict=True)))
    return torch.stack(rows).view_as(x)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [8, 5])
@pytest.mark.parametrize("top_k", [1, 2, 6])
@pytest.mark.parametrize("router", [{"kind": "softmax_router"}, {"kind": "sigmoid_router", "scale": 1.7}])
def test_equals_every_expert_by_hand(width: int, top_k: int, router: dict) -> None:
    block, x = mixture(router, width=width, top_k=top_k), tokens()
    torch.testing.assert_close(block(x), by_hand(block, x), rtol=1e-4, atol=1e-5)


def test_grouped_products_equal_the_loop_in_value_and_gradient() -> None:
    block, x = mixture(), tokens()
    _, chosen, _ = block.router(x.flatten(0, -2))
    order = chosen.flatten().argsort(stable=True)
    rows, counts = x.flatten(0, -2)[order // 2], chosen.flatten().bincount(minlength=EXPERTS)
    results = []
    for way in (block.experts.grouped, block.experts.loop):
        block.zero_grad()
        out = way(rows, counts)
        out.square().sum().backward()
        results.append([out, block.experts.gate.grad, block.experts.up.grad, block.experts.down.grad])
    for grouped, loop in zip(*results, strict=True):
        torch.testing.assert_close(grouped, loop, rtol=1e-4, atol=1e-5)


def test_an_expert_without_tokens() -> None:
    block = mixture(top_k=1)
    with torch.no_grad():
        block.router.weight.zero_()
        block.router.weight[3] = 100.0  # all tokens with a positive sum go to expert 3
    x = tokens().abs()
    torch.testing.assert_close(block(x), torch.stack([one_expert(block, r, 3) for r in x.flatten(0, 1)]).view_as(x))
    block(x).sum().backward()
    assert block.experts.gate.grad is not None
    assert not block.experts.gate.grad[[0, 1, 2, 4, 5]].any()


def test_the_shared_mlp_sees_every_token() -> None:
    block, x = mixture(shared={"kind": "gated_mlp", "width": 4}), tokens()
    assert block.shared is not None
    torch.testing.assert_close(block(x), by_hand(block, x) + block.shared(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("renormalise", [True, False])
def test_softmax_router(renormalise: bool) -> None:
    router = tiny.stirred(SoftmaxRouter(DIM, EXPERTS, 2, renormalise=renormalise))
    x = tokens().flatten(0, 1)
    weights, chosen, logits = router(x)
    share = (x @ router.weight.T).softmax(-1)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(logits, x @ router.weight.T)  # type: ignore[union-attr, operator]
    for row, w, c in zip(share, weights, chosen, strict=True):
        best = row.topk(2)
        assert c.tolist() == best.indices.tolist()
        torch.testing.assert_close(w, best.values / best.values.sum() if renormalise else best.values)


@pytest.mark.parametrize("renormalise", [True, False])
def test_sigmoid_router_chooses_with_the_correction_and_weighs_without(renormalise: bool) -> None:
    router = tiny.stirred(SigmoidRouter(DIM, EXPERTS, 2, renormalise=renormalise, scale=2.5))
    with torch.no_grad():
        router.correction.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0, 0.0]))  # type: ignore[union-attr, operator]
    x = tokens().flatten(0, 1)
    weights, chosen, _ = router(x)
    scores = torch.sigmoid(x @ router.weight.T)  # type: ignore[union-attr, operator]
    assert (chosen == 2).any(-1).all()
    for row, w, c in zip(scores, weights, chosen, strict=True):
        want = row[c] / row[c].sum() if renormalise else row[c]
        torch.testing.assert_close(w, want * 2.5)
    assert not router.correction.requires_grad  # type: ignore[union-attr]


def test_only_the_best_groups_are_open() -> None:
    router = tiny.stirred(SigmoidRouter(DIM, EXPERTS, 2, groups=3, top_groups=1))
    _, chosen, _ = router(tokens().flatten(0, 1))
    assert (chosen[:, 0] // 2 == chosen[:, 1] // 2).all()
    free = tiny.stirred(SigmoidRouter(DIM, EXPERTS, 2, groups=3, top_groups=3))
    assert not (free(tokens().flatten(0, 1))[1] // 2).diff(dim=-1).eq(0).all()


def test_auxiliary_losses_and_counts() -> None:
    block, x = mixture(balance_weight=0.5, z_weight=0.25), tokens()
    block(x)
    assert block.auxiliary is None
    block.train()
    block(x)
    _, chosen, logits = block.router(x.flatten(0, -2))
    share = torch.stack([(chosen == e).float().sum() / chosen.numel() for e in range(EXPERTS)])
    balance = EXPERTS * sum(share[e] * logits.softmax(-1)[:, e].mean() for e in range(EXPERTS))
    z = (logits.exp().sum(-1).log() ** 2).mean()
    assert block.auxiliary is not None
    torch.testing.assert_close(block.auxiliary, 0.5 * balance + 0.25 * z)
    assert block.counts is not None
    assert block.counts.tolist() == [int((chosen == e).sum()) for e in range(EXPERTS)]


def test_routing_is_in_fp32_under_autocast() -> None:
    block, x = mixture(), tokens()
    exact = block.router(x.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = block.router(x.flatten(0, 1))
        assert block(x).shape == x.shape
    for one, other in zip(exact, mixed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_k": 7}, "top_k=7 is more than experts=6"),
        ({"router": {"kind": "sigmoid_router", "groups": 4}}, "experts=6, groups=4, top_groups=1 don't divide up"),
        ({"router": {"kind": "sigmoid_router", "groups": 2, "top_groups": 3}}, "don't divide up"),
    ],
)
def test_numbers_that_do_not_fit(fields: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        mixture(**fields)
