"""Layers that write through a learned factor for each feature."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from mlplatform.context import Context
from mlplatform.models import build
from mlplatform.registry import Spec

DIM = 12
NORM = Spec.of({"kind": "layer_norm"}, "norm")
LAYER: dict[str, Any] = {
    "kind": "scaled_pre_norm",
    "start": 0.25,
    "attention": {"kind": "attention", "heads": 3, "mask": "full"},
    "mlp": {"kind": "mlp", "width": 7},
}


def test_each_sublayer_is_scaled_by_feature() -> None:
    block: Any = tiny.stirred(Spec.of(LAYER, "layer").build(dim=DIM, tower_norm=NORM, context_length=16))
    x, context = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0)), Context(torch.arange(5)[None])
    middle = x + block.attention(block.attention_norm(x), context) * block.attention_scale
    torch.testing.assert_close(block(x, context), middle + block.mlp(block.mlp_norm(middle)) * block.mlp_scale)
    assert not torch.equal(block.attention_scale, block.mlp_scale)


def test_the_scales_start_where_the_spec_says() -> None:
    model: Any = build({"kind": "single_tower", "trunk": tiny.tower(layer=LAYER, dim=DIM)})
    for layer in model.trunk.layers:
        for scale in (layer.attention_scale, layer.mlp_scale):
            assert torch.equal(scale, torch.full((DIM,), 0.25))
