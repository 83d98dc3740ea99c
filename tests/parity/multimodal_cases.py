"""The table's rows of models that read images and texts."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from oracle import ROWS, VOCAB, Case, token_batch
from torch import Tensor

TOWER: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TOWER |= {"image_size": 16, "patch_size": 8}
TEXT: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"intermediate_size": 48, "max_position_embeddings": 40}
IMAGE = 92
STATES = ("hidden_states.0", "hidden_states.1", "hidden_states.2")


def images(side: int = 16) -> Tensor:
    return torch.randn(ROWS, 3, side, side, generator=torch.Generator().manual_seed(4))


def placed(patches: int) -> Any:
    """Return the inputs of texts that hold one image each, before the tokens that are decoded one by one."""

    def inputs(padding: str | None) -> dict[str, Tensor]:
        batch = token_batch(padding)
        start = 3 if padding == "left" else 0
        batch["input_ids"] %= IMAGE
        batch["input_ids"][:, start : start + patches] = IMAGE
        return {**batch, "pixel_values": images()}

    return inputs


def llava(variant: str, more: dict[str, Any] | None = None, patches: int = 4, **kw: Any) -> Case:
    more = dict(more or {})
    vision = {**TOWER, "model_type": "clip_vision_model"}
    text = {"model_type": "llama", **TEXT, "num_key_value_heads": 2, **more.pop("text", {})}
    text = more.pop("language", text)
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, **more)
    kw.setdefault("break_at", ("vision.trunk.norm.eps", 0.3))
    kw.setdefault("inputs", placed(patches))
    return Case("llava", variant, tf.LlavaForConditionalGeneration, config, **kw)


def beside(padding: str | None) -> dict[str, Tensor]:
    """Return texts and an image for each."""
    return {**token_batch(padding), "pixel_values": images()}


def blip(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    more = dict(more or {})
    text = {**TEXT, "bos_token_id": 1, "sep_token_id": 2, **more.pop("text", {})}
    vision = {**TOWER, "num_hidden_layers": 2, **more.pop("vision", {})}
    config = tf.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8, **more)
    kw.setdefault("break_at", ("vision.trunk.norm.eps", 0.3))
    kw.setdefault("inputs", beside)
    return Case("blip", variant, model, config, **kw)


def question(padding: str | None) -> dict[str, Tensor]:
    """Return questions without padding, which transformers' answers would read, images, and answers."""
    batch = beside(None)
    answers = token_batch(padding)
    tokens = answers["input_ids"].flip(-1)[:, :7].contiguous()
    labels = tokens.clone()
    if padding is not None:
        batch["decoder_attention_mask"] = mask = answers["attention_mask"][:, 5:]
        labels = labels.masked_fill(mask == 0, -100)
    return {**batch, "decoder_input_ids": tokens, "labels": labels}


SEEN = ("last_hidden_state", *STATES)


def fastvlm(variant: str, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    small = {"inference_mode": True, "layers": [1] * 5, "embed_dims": [4, 8, 16, 32, 32], "cls_ratio": 96.0}
    vision = {"model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": 3072, "model_args": small}
    text = {"model_type": "qwen2", **TEXT, "num_key_value_heads": 2, **(more or {})}
    config = tf.FastVlmConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=4)
    kw.setdefault("inputs", lambda padding: {**placed(4)(padding), "pixel_values": images(128)})
    kw.setdefault("fields", ("logits", *STATES))
    return Case("fastvlm", variant, tf.FastVlmForConditionalGeneration, config, **kw)


MULTIMODAL = [
    fastvlm("fused", break_at=("projector.activation", "relu")),
    fastvlm("tied", {"tie_word_embeddings": True}, break_at=("language.trunk.norm.eps", 0.3), within=2e-5),
    blip("captions", tf.BlipForConditionalGeneration, fields=("logits", "image_embeds", *SEEN)),
    blip(
        "captions-relu-eps",
        tf.BlipForConditionalGeneration,
        {"text": {"hidden_act": "relu", "layer_norm_eps": 1e-3}, "vision": {"hidden_act": "gelu_new"}},
        break_at=("text.trunk.norm.eps", 0.3),
    ),
    blip("matching", tf.BlipForImageTextRetrieval, fields=("itm_score", "question_embeds", *SEEN), labels=False),
    blip(
        "cosine",
        tf.BlipForImageTextRetrieval,
        {"vision": {"num_hidden_layers": 1}},
        options={"use_itm_head": False},
        fields=("itm_score", "question_embeds"),
        labels=False,
        break_at=("text.trunk.layer.attention.mask", "causal"),
    ),
    blip(
        "questions",
        tf.BlipForQuestionAnswering,
        {"vision": {"hidden_size": 32}},  # theirs takes the two towers for equally wide
        inputs=question,
        paddings=(None, "right"),  # a padded place before an answer would be scored on its first token
        fields=("loss", "image_embeds", *SEEN),
        break_at=("text.decoder.layer.attention.mask", "full"),
    ),
    Case(
        "blip",
        "image-tower",
        tf.BlipVisionModel,
        tf.BlipVisionConfig(**TOWER),
        inputs=lambda _: {"pixel_values": images()},
        paddings=(None,),
        fields=SEEN,
        labels=False,
        break_at=("trunk.norm.eps", 0.3),
    ),
    llava("default", fields=("logits", "image_hidden_states", *STATES)),
    llava(
        "full-last-no-bias-tied",
        {
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu_pytorch_tanh",
            "text": {"tie_word_embeddings": True, "attention_bias": True},
        },
        patches=5,
        break_at=("projector.activation", "relu"),
    ),
    llava("two-layers", {"vision_feature_layer": [-3, -1]}, break_at=("feature_layer", [-1, -3])),
    llava("text-only", inputs=token_batch, break_at=("language.trunk.norm.eps", 0.3)),
    llava("ministral", {"text": {"model_type": "ministral", "head_dim": 12, "sliding_window": 5}}),
]
