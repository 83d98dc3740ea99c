"""What a mixture of experts leaves for training: losses, the load of its experts, and products grouped in bf16."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from mlplatform.blocks.moe import Experts, MixtureOfExperts, auxiliary_loss, expert_metrics, mixtures
from mlplatform.blocks.routers import SigmoidRouter
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import Spec

SOFTMAX = {"kind": "softmax_router"}


def moe(dim: int = 16, **fields: Any) -> MixtureOfExperts:
    spec = {"kind": "moe", "experts": 5, "top_k": 2, "width": 24, "router": SOFTMAX, **fields}
    block = Spec.of(spec, "mlp").build(dim=dim)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return block


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("counts", [[3, 9, 4], [0, 16, 0], [16, 0, 0], [1, 0, 15]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_equal_the_loop(counts: list[int], dtype: torch.dtype) -> None:
    results = []
    for way in ("grouped", "loop"):
        experts = Experts(8, 3, 16, "silu").to(dtype)
        rows = tokens(sum(counts), 8).to(dtype).requires_grad_()
        generator = torch.Generator().manual_seed(3)
        for matrix in experts.parameters():
            matrix.data = torch.randn(matrix.shape, generator=generator).to(dtype)
        out = getattr(experts, way)(rows, torch.tensor(counts))
        (out.float() * tokens(*out.shape)).sum().backward()
        results.append([out, rows.grad, *(matrix.grad for matrix in experts.parameters())])
    for grouped, loop in zip(*results, strict=True):
        torch.testing.assert_close(grouped, loop, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)


def test_counts_add_up_until_settled_and_only_in_training() -> None:
    block = moe()
    block.eval()(tokens(2, 6, 16))
    assert block.counts is None
    block.train()
    block(tokens(2, 6, 16))
    block(tokens(1, 3, 16))
    assert block.counts is not None
    assert block.counts.sum() == (12 + 3) * 2
    block.settle(lambda counts: counts * 2)  # two ranks with the same tokens
    assert block.counts is None
    assert block.load is not None
    assert block.load.sum() == 60


def model_of_experts(**fields: Any) -> nn.Module:
    mlp = {"kind": "moe", "experts": 4, "top_k": 2, "width": 16, "router": SOFTMAX, **fields}
    layer = {"kind": "pre_norm", "attention": {"kind": "attention", "heads": 4}, "mlp": mlp}
    spec = {"kind": "single_tower", "trunk": tiny.tower(layer=layer), "head": {"kind": "lm_head"}}
    return tiny.stirred(build(spec)).train()


def test_a_model_tells_its_losses_and_its_load() -> None:
    model = model_of_experts(balance_weight=0.01)
    ids = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids)
    extra = auxiliary_loss(model)
    assert extra is not None
    each = [m.auxiliary for _, m in mixtures(model)]
    assert len(each) == 2
    assert extra == sum(each)  # type: ignore[arg-type]
    assert expert_metrics(model) == {}, "nothing before a step has ended"
    for _, block in mixtures(model):
        block.settle(lambda counts: counts)
    metrics = expert_metrics(model)
    assert set(metrics) == {f"experts/trunk.layers.{i}.mlp/{word}" for i in (0, 1) for word in ("busiest", "idlest")}
    assert all(v >= 1 for k, v in metrics.items() if k.endswith("busiest"))
    assert all(v <= 1 for k, v in metrics.items() if k.endswith("idlest"))


def test_without_weights_there_is_no_extra_loss() -> None:
    model = model_of_experts()
    model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert auxiliary_loss(model) is None


def test_recomputed_layers_give_the_same_gradients() -> None:
    """Activation checkpointing: the extra loss is made inside of layers that run again."""
    ids = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    gradients = []
    for again in (False, True):
        model = model_of_experts(balance_weight=0.1, z_weight=0.1)
        model.trunk.checkpointed = again  # type: ignore[union-attr]
        out = model(input_ids=ids, labels=ids)
        (out.loss + auxiliary_loss(model)).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-7)


def test_the_correction_follows_the_load() -> None:
    router = SigmoidRouter(16, 4, 2, correction_rate=0.1)
    router.settle(torch.tensor([10, 2, 6, 6]))
    assert router.correction is not None
    assert router.correction.tolist() == pytest.approx([-0.1, 0.1, 0.0, 0.0])


def test_without_a_rate_the_correction_stays() -> None:
    router = SigmoidRouter(16, 4, 2)
    router.settle(torch.tensor([10, 2, 6, 6]))
    assert router.correction is not None
    assert router.correction.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize(("groups", "top_groups"), [(4, 2), (2, 1), (2, 2)])
def test_groups_by_hand(correction: bool, groups: int, top_groups: int) -> None:
    router = tiny.stirred(SigmoidRouter(6, 8, 3, correction=correction, groups=groups, top_groups=top_groups))
    x, size = tokens(20, 6), 8 // groups
    _, chosen, logits = router(x)
    for row, found in zip(logits.sigmoid().tolist(), chosen.tolist(), strict=True):
        merit = [s + (router.correction[e].item() if correction else 0.0) for e, s in enumerate(row)]  # type: ignore[index]
        of_group = [sum(sorted(merit[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        is_open = sorted(range(groups), key=lambda g: -of_group[g])[:top_groups]
        assert found == sorted((e for e in range(8) if e // size in is_open), key=lambda e: -merit[e])[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5, "groups": 4, "top_groups": 2}, "top_k=5 is more than the 4 experts"),
        ({"top_k": 2, "correction": False, "correction_rate": 0.1}, "needs correction"),
    ],
)
def test_numbers_that_do_not_fit(options: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SigmoidRouter(16, 8, **options)  # type: ignore[arg-type]
