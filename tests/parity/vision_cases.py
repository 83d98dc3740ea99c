"""The table's rows of image models, and of texts beside images."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from oracle import ROWS, Case
from text_cases import STATES
from torch import Tensor

SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE: dict[str, Any] = {**SIZE, "image_size": 16, "patch_size": 4}


def images(height: int = 16, width: int = 16, channels: int = 3) -> dict[str, Tensor]:
    """Return a batch of random images."""
    generator = torch.Generator().manual_seed(4)
    return {"pixel_values": torch.randn(ROWS, channels, height, width, generator=generator)}


class UnpooledViT(tf.ViTModel):
    """ViTModel as other code builds it: without the pooler, and its files without the pooler's weights."""

    def __init__(self, config: tf.ViTConfig) -> None:
        super().__init__(config, add_pooling_layer=False)


# transformers writes the names its own files have only for classes of its own
UnpooledViT.__name__, UnpooledViT.__module__ = "ViTModel", tf.ViTModel.__module__


def vit(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    kw.setdefault("break_at", ("trunk.layer.mlp.activation", "relu"))
    kw.setdefault("inputs", lambda _: images())
    return Case("vit", variant, model, tf.ViTConfig(**{**IMAGE, **(more or {})}), paddings=(None,), **kw)


def masked_images(_: str | None) -> dict[str, Tensor]:
    marked = torch.rand(ROWS, 16, generator=torch.Generator().manual_seed(5)) < 0.4
    return {**images(), "bool_masked_pos": marked}


RESIZED: dict[str, Any] = {"options": {"interpolate_pos_encoding": True}, "inputs": lambda _: images(24, 20)}
POOLED = ("last_hidden_state", "pooler_output", *STATES)
VISION = [
    vit("classification", tf.ViTForImageClassification, {"num_labels": 3}, fields=("logits", *STATES)),
    vit("pooled", tf.ViTModel, fields=POOLED, labels=False),
    vit("pooled-relu-no-qkv-bias", tf.ViTModel, {"pooler_act": "relu", "qkv_bias": False}, fields=POOLED, labels=False),
    vit("unpooled", UnpooledViT, fields=("last_hidden_state", *STATES), labels=False, head="none"),
    vit(
        "one-channel-eps",
        tf.ViTForImageClassification,
        {"num_channels": 1, "layer_norm_eps": 1e-3},
        inputs=lambda _: images(channels=1),
        break_at=("trunk.norm.eps", 0.3),
    ),
    vit("another-resolution", tf.ViTForImageClassification, {"num_labels": 3}, fields=("logits", *STATES), **RESIZED),
    vit(
        "masked-image",
        tf.ViTForMaskedImageModeling,
        {"encoder_stride": 4},
        inputs=masked_images,
        fields=("reconstruction", *STATES),
        labels=False,
    ),
]
