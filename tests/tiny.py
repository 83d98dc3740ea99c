"""Small models for tests: the shipped families made small, and one spec of each other assembly."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mlplatform.cli.compose import compose_model
from mlplatform.models import build

SMALL = {
    "llama": ["trunk.dim=32", "trunk.depth=2", "trunk.context_length=64", "trunk.input.vocab=50",
              "trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=2", "trunk.layer.mlp.width=48"],
    "gpt2": ["trunk.dim=32", "trunk.depth=2", "trunk.context_length=64", "trunk.input.vocab=50",
             "trunk.layer.attention.heads=4"],
    "bert": ["trunk.dim=32", "trunk.depth=2", "trunk.context_length=64", "trunk.input.vocab=50",
             "trunk.layer.attention.heads=4", "trunk.layer.mlp.width=48"],
}  # fmt: skip


def spec(family: str, *overrides: str) -> dict[str, Any]:
    """Return the composed and checked spec of a shipped family, made small."""
    return compose_model(family, [*SMALL[family], *overrides]).check().config


def model(family: str, *overrides: str, seed: int = 0) -> nn.Module:
    """Return a small model whose every parameter is away from its initial value, without dropout."""
    return stirred(build(spec(family, *overrides), seed=seed))


@torch.no_grad()
def stirred(module: nn.Module, seed: int = 1) -> nn.Module:
    """Set every parameter from a seed, so that no bias is zero and no norm is one; switch dropout off."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        value *= parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(value + (parameter.ndim == 1 and not name.endswith("bias")))
    return module.eval()


def tower(dim: int = 32, depth: int = 2, **changes: Any) -> dict[str, Any]:
    """Return the spec of a small pre-norm tower of tokens."""
    plain: dict[str, Any] = {
        "kind": "transformer",
        "dim": dim,
        "depth": depth,
        "context_length": 64,
        "norm": {"kind": "rms_norm"},
        "input": {"kind": "tokens", "vocab": 50},
        "layer": {
            "kind": "pre_norm",
            "attention": {"kind": "attention", "heads": 4, "mask": "causal", "rope": {"kind": "rope"}},
            "mlp": {"kind": "gated_mlp", "width": 48},
        },
        "final_norm": True,
    }
    return copy.deepcopy(plain) | changes


def encoder_decoder() -> dict[str, Any]:
    """T5's shape: relative positions, a decoder that reads the encoder and shares its table."""
    attention = {"kind": "attention", "heads": 4, "scale": 1.0}
    mlp = {"kind": "mlp", "width": 48, "activation": "relu", "bias": False}
    encoder = tower(
        layer={"kind": "pre_norm", "attention": {**attention, "mask": "full"}, "mlp": mlp},
        position_bias={"kind": "relative_buckets"},
    )
    decoder = tower(
        input={"kind": "shared_tokens"},
        layer={
            "kind": "pre_norm",
            "attention": attention,
            "cross": {"kind": "cross_attention", "heads": 4, "scale": 1.0},
            "mlp": mlp,
        },
        position_bias={"kind": "relative_buckets", "bidirectional": False},
    )
    return {
        "kind": "encoder_decoder",
        "encoder": encoder,
        "decoder": decoder,
        "head": {"kind": "lm_head", "tied": True},
    }


def image_tower(dim: int = 24) -> dict[str, Any]:
    """ViT's shape, for 16 x 16 images in patches of 4: 17 positions."""
    return tower(
        dim=dim,
        norm={"kind": "layer_norm"},
        input={"kind": "patches", "image_size": 16, "patch": 4},
        layer={
            "kind": "pre_norm",
            "attention": {"kind": "attention", "heads": 4, "mask": "full", "bias": True},
            "mlp": {"kind": "mlp", "width": 40},
        },
    )


def dual_tower() -> dict[str, Any]:
    """CLIP's shape."""
    text = {"kind": "single_tower", "trunk": tower(), "head": {"kind": "projection", "width": 16, "pool": "end"}}
    vision = {"kind": "single_tower", "trunk": image_tower(), "head": {"kind": "projection", "width": 16}}
    return {"kind": "dual_tower", "text": text, "vision": vision}


def vision_language() -> dict[str, Any]:
    """LLaVA's shape; token 49 stands for an image patch."""
    return {
        "kind": "vision_language",
        "vision": {"kind": "single_tower", "trunk": image_tower()},
        "language": {"kind": "single_tower", "trunk": tower(), "head": {"kind": "lm_head", "tied": False}},
        "projector": {"kind": "mlp", "width": 32},
        "image_token": 49,
    }
