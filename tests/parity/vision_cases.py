"""The table's rows of image models, and of texts beside images."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from family_cases import FOLDER
from oracle import ROWS, VOCAB, Case, token_batch
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


def resnet(variant: str, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    size = {"embedding_size": 12, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_labels": 3}
    config = tf.ResNetConfig(**{**size, **(more or {})})
    kw.setdefault("break_at", ("trunk.activation", "gelu"))
    kw.setdefault("inputs", lambda _: images(32, 24))
    return Case("resnet", variant, tf.ResNetForImageClassification, config, paddings=(None,), **kw)


def masked_images(_: str | None) -> dict[str, Tensor]:
    marked = torch.rand(ROWS, 16, generator=torch.Generator().manual_seed(5)) < 0.4
    return {**images(), "bool_masked_pos": marked}


TEXT: dict[str, Any] = {**SIZE, "vocab_size": VOCAB, "max_position_embeddings": 40, "bos_token_id": 1}
END = VOCAB - 1


def texts(padding: str | None, end: int = END) -> dict[str, Tensor]:
    """Return texts that end with their end token; padding on the right is that token again, as CLIP's tokenizer does.

    Before a text the padding is another token, and higher than all others stands `END`, wherever the text ends.
    """
    batch = token_batch(padding)
    tokens = batch["input_ids"].clamp(max=END - 1)
    tokens[:, 3] = 7  # a token no one else is
    mask = batch.get("attention_mask", torch.ones_like(tokens))
    if padding == "right":
        tokens = tokens.masked_fill(mask == 0, end)
    last = (mask * torch.arange(tokens.shape[1])).argmax(-1)
    tokens[torch.arange(ROWS), last] = end
    return {**batch, "input_ids": tokens}


def pairs(padding: str | None) -> dict[str, Tensor]:
    return {**texts(padding), **images()}


def clip_text(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    config = tf.CLIPTextConfig(**{**TEXT, "eos_token_id": END, "pad_token_id": 0, "projection_dim": 16, **(more or {})})
    kw.setdefault("break_at", ("trunk.layer.attention.mask", "full"))
    kw.setdefault("inputs", texts)
    return Case("clip_text", variant, model, config, labels=False, **kw)


def clip_vision(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    config = tf.CLIPVisionConfig(**{**IMAGE, "projection_dim": 16, **(more or {})})
    kw.setdefault("break_at", ("trunk.layer.mlp.activation", "gelu"))
    kw.setdefault("inputs", lambda _: images())
    return Case("clip_vision", variant, model, config, paddings=(None,), labels=False, **kw)


def clip(variant: str, more: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **kw: Any) -> Case:
    """The two towers' widths differ, and what their own configs say of the projection means nothing."""
    own = {**TEXT, "eos_token_id": END, "pad_token_id": 0, **(text or {})}
    vision = {**IMAGE, "hidden_size": 40, "num_hidden_layers": 3}
    config = tf.CLIPConfig(text_config=own, vision_config=vision, **{"projection_dim": 16, **(more or {})})
    kw.setdefault("break_at", ("vision.trunk.layer.mlp.activation", "gelu"))
    kw.setdefault("inputs", pairs)
    return Case("clip", variant, tf.CLIPModel, config, options={"return_loss": True, **kw.pop("options", {})}, **kw)


def siglip(variant: str, text: dict[str, Any] | None = None, **kw: Any) -> Case:
    vision = {**IMAGE, "hidden_size": 40, "num_hidden_layers": 3}
    own = {**TEXT, "eos_token_id": END, "pad_token_id": 0, "projection_size": 40, **(text or {})}
    config = tf.SiglipConfig(text_config=own, vision_config=vision)
    kw.setdefault("break_at", ("vision.trunk.layer.mlp.activation", "relu"))
    kw.setdefault("inputs", pairs)
    options = {"return_loss": True, **kw.pop("options", {})}
    return Case("siglip", variant, tf.SiglipModel, config, config_dirs=(FOLDER,), options=options, **kw)


def dinov2(variant: str, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    size = {key: value for key, value in IMAGE.items() if key != "intermediate_size"}
    config = tf.Dinov2Config(**{**size, "mlp_ratio": 2, "layerscale_value": 0.7, **(more or {})})
    kw.setdefault("inputs", masked_images)
    wrong = ("trunk.layer.mlp.activation", "relu")
    dirs, fields = (FOLDER,), ("last_hidden_state", "pooler_output", *STATES)
    return Case(
        "dinov2",
        variant,
        tf.Dinov2Model,
        config,
        wrong,
        config_dirs=dirs,
        fields=fields,
        paddings=(None,),
        labels=False,
        **kw,
    )


RESIZED: dict[str, Any] = {"options": {"interpolate_pos_encoding": True}, "inputs": lambda _: images(24, 20)}
RESIZED_PAIR: dict[str, Any] = {**RESIZED, "inputs": lambda padding: {**texts(padding), **images(24, 20)}}
PAIR = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "loss")
TOWERS = tuple(
    f"{tower}_model_output.{name}" for tower in ("text", "vision") for name in ("last_hidden_state", "pooler_output")
)
PAIR_STATES = ("text_model_output.hidden_states.2", "vision_model_output.hidden_states.3")
POOLED = ("last_hidden_state", "pooler_output", *STATES)
VISION = [
    vit("classification", tf.ViTForImageClassification, {"num_labels": 3}, fields=("logits", *STATES)),
    vit("pooled", tf.ViTModel, fields=POOLED, labels=False),
    vit("pooled-relu-no-qkv-bias", tf.ViTModel, {"pooler_act": "relu", "qkv_bias": False}, fields=POOLED, labels=False),
    vit("unpooled", UnpooledViT, fields=("last_hidden_state", *STATES), labels=False, head="none"),
    vit(
        "one-channel-eps",
        tf.ViTForImageClassification,
        {"num_channels": 1, "layer_norm_eps": 1e-3, "num_labels": 3},
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
    resnet("classification"),
    resnet(
        "classification-basic",
        {"layer_type": "basic", "downsample_in_first_stage": True, "hidden_act": "gelu"},
        break_at=("trunk.activation", "relu"),
    ),
    clip("plain", fields=(*PAIR, *TOWERS, *PAIR_STATES)),
    clip(
        "old-end-gelu",
        {"logit_scale_init_value": 1.0},
        {"eos_token_id": 2, "hidden_act": "gelu"},
        fields=(*PAIR, *TOWERS),
    ),
    clip("another-resolution", **RESIZED_PAIR, fields=(*PAIR, *TOWERS), labels=False),
    clip_text("projected", tf.CLIPTextModelWithProjection, fields=("text_embeds", "last_hidden_state", *STATES)),
    clip_text("pooled", tf.CLIPTextModel, fields=POOLED),
    clip_text("old-end", tf.CLIPTextModel, {"eos_token_id": 2}, fields=POOLED),
    clip_vision("projected", tf.CLIPVisionModelWithProjection, fields=("image_embeds", "last_hidden_state", *STATES)),
    clip_vision("pooled", tf.CLIPVisionModel, fields=POOLED),
    clip_vision("another-resolution", tf.CLIPVisionModel, fields=POOLED, **RESIZED),
    siglip("plain", fields=(*PAIR, *TOWERS, *PAIR_STATES)),
    siglip("another-resolution", **RESIZED_PAIR, fields=(*PAIR, *TOWERS), labels=False),
    dinov2("masked"),
    dinov2("no-mask-token-no-qkv-bias", {"use_mask_token": False, "qkv_bias": False}, inputs=lambda _: images()),
]
