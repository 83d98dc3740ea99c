"""The table's rows of text models beside Llama, GPT-2 and BERT."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from oracle import VOCAB, Case, token_batch
from torch import Tensor, nn

TEXT_SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT_SIZE |= {"intermediate_size": 48, "max_position_embeddings": 40}
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
STATES = ("hidden_states.0", "hidden_states.1", "hidden_states.2")


def padded_with(token: int, padding: str | None) -> dict[str, Tensor]:
    """Return a token batch whose padding is a token of its own, as a tokenizer writes it."""
    batch = token_batch(padding)
    if "attention_mask" in batch:
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, token)
    return batch


def zeros(padding: str | None) -> dict[str, Tensor]:
    return padded_with(0, padding)


def roberta(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    config = tf.RobertaConfig(**{**TEXT_SIZE, "type_vocab_size": 1, "pad_token_id": 1, **(more or {})})
    kw.setdefault("break_at", ("trunk.norm.eps", 0.3))
    kw.setdefault("inputs", lambda padding: padded_with(config.pad_token_id, padding))
    return Case("roberta", variant, model, config, **kw)


def distilbert(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    size = {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    config = tf.DistilBertConfig(**{**size, "max_position_embeddings": 40, **(more or {})})
    kw.setdefault("break_at", ("trunk.layer.mlp.activation", "relu"))
    return Case("distilbert", variant, model, config, **kw)


def ministral(
    variant: str, model: type = tf.MinistralForCausalLM, more: dict[str, Any] | None = None, **kw: Any
) -> Case:
    size = {**TEXT_SIZE, **IDS, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 5}
    config = tf.MinistralConfig(**{**size, "layer_types": ["sliding_attention", "full_attention"], **(more or {})})
    kw.setdefault("break_at", ("trunk.layer.attention.window", 4))
    return Case("ministral", variant, model, config, **kw)


def ministral3(variant: str, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 4}
    yarn |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    size = {**TEXT_SIZE, **IDS, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
    config = tf.Ministral3Config(**{**size, "rope_parameters": yarn, **(more or {})})
    kw.setdefault("break_at", ("trunk.layer.attention.temperature.beta", 0.2))
    return Case("ministral3", variant, tf.Ministral3ForCausalLM, config, **kw)


def afmoe(variant: str, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    size = {**TEXT_SIZE, **IDS, "num_key_value_heads": 2, "head_dim": 12, "num_hidden_layers": 4, "sliding_window": 5}
    experts = {"moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": 2}
    layers = {"num_dense_layers": 1, "global_attn_every_n_layers": 2, "mup_enabled": True, "route_scale": 1.7}
    config = tf.AfmoeConfig(**{**size, **experts, **layers, **(more or {})})
    kw.setdefault("break_at", ("trunk.layer.mlp.router.scale", 1.0))
    return Case("afmoe", variant, tf.AfmoeForCausalLM, config, **kw)


def pair_batch(padding: str | None) -> dict[str, Tensor]:
    """Return a batch for an encoder-decoder: 12 tokens to read, 7 to score, with rows of 7, 4 and 6 real ones."""
    batch = token_batch(padding)
    batch["decoder_input_ids"] = batch["input_ids"].flip(-1)[:, :7].contiguous()
    if padding is not None:
        mask = torch.zeros(3, 7, dtype=torch.long)
        for row, real in enumerate((7, 4, 6)):
            mask[row, :real] = 1
        batch["decoder_attention_mask"] = mask if padding == "right" else mask.flip(-1)
    return batch


PAIR_STATES = (
    "encoder_last_hidden_state",
    "encoder_hidden_states.1",
    "decoder_hidden_states.0",
    "decoder_hidden_states.2",
)


def t5(
    variant: str, model: type = tf.T5ForConditionalGeneration, more: dict[str, Any] | None = None, **kw: Any
) -> Case:
    size = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    size |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "decoder_start_token_id": 0}
    kw.setdefault("break_at", ("encoder.position_bias.max_distance", 20))
    kw.setdefault("inputs", pair_batch)
    return Case("t5", variant, model, tf.T5Config(**{**size, **(more or {})}), **kw)


def own_head(model: nn.Module) -> None:
    """Untie T5's head: in transformers 5 only a file with a matrix of its own is untied."""
    weight = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(5))
    model.lm_head.weight = nn.Parameter(weight * 0.3)


def t5gemma2(variant: str, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    ropes = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    ropes["full_attention"] = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    text = {**TEXT_SIZE, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 5}
    text |= {"query_pre_attn_scalar": 10, "final_logit_softcapping": 8.0, "rope_parameters": ropes}
    text |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **(more or {})}
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4}
    tokens = {"mm_tokens_per_image": 4, "boi_token_index": 90, "eoi_token_index": 91}
    encoder = {"text_config": text, "vision_config": vision, **tokens}
    kw.setdefault("break_at", ("language.decoder.layer.attention.window", 4))
    kw.setdefault("inputs", pair_batch)
    config = tf.T5Gemma2Config(encoder=encoder, decoder=dict(text), image_token_index=92)
    return Case("t5gemma2", variant, tf.T5Gemma2ForConditionalGeneration, config, **kw)


def image_batch(padding: str | None) -> dict[str, Tensor]:
    """Return a batch whose texts hold one image each: four places for it and its end."""
    batch = pair_batch(padding)
    start = 7 if padding == "left" else 0
    batch["input_ids"] %= 90
    batch["input_ids"][:, start : start + 5] = torch.tensor([92, 92, 92, 92, 91])
    generator = torch.Generator().manual_seed(4)
    return {**batch, "pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}


GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu"}
TEXT = [
    roberta("masked_lm", tf.RobertaForMaskedLM, fields=("logits", *STATES)),
    roberta("pad-is-0", tf.RobertaForMaskedLM, {"pad_token_id": 0, "layer_norm_eps": 1e-5}),
    roberta("classification", tf.RobertaForSequenceClassification, {"num_labels": 3}, tokenwise=False),
    roberta("token-classification", tf.RobertaForTokenClassification, {"num_labels": 3}),
    roberta("question-answering", tf.RobertaForQuestionAnswering, fields=("start_logits", "end_logits"), labels=False),
    roberta("pooled", tf.RobertaModel, fields=("last_hidden_state", "pooler_output"), labels=False),
    distilbert("masked_lm", tf.DistilBertForMaskedLM, fields=("logits", *STATES)),
    distilbert("classification", tf.DistilBertForSequenceClassification, {"num_labels": 3}, tokenwise=False),
    distilbert("token-classification", tf.DistilBertForTokenClassification, {"num_labels": 3}),
    distilbert(
        "question-answering", tf.DistilBertForQuestionAnswering, fields=("start_logits", "end_logits"), labels=False
    ),
    distilbert("bare", tf.DistilBertModel, fields=("last_hidden_state",), labels=False),
    ministral("mixed", fields=("logits", *STATES)),
    ministral("all-full", more={"layer_types": ["full_attention"] * 2}, break_at=("trunk.norm.eps", 0.3)),
    ministral(
        "classification", tf.MinistralForSequenceClassification, {"num_labels": 3}, tokenwise=False, inputs=zeros
    ),
    ministral("token-classification", tf.MinistralForTokenClassification, {"num_labels": 3}),
    ministral(
        "question-answering", tf.MinistralForQuestionAnswering, fields=("start_logits", "end_logits"), labels=False
    ),
    ministral("bare", tf.MinistralModel, fields=("last_hidden_state",), labels=False),
    ministral3("yarn-temperature", fields=("logits", *STATES)),
    ministral3("window", {"sliding_window": 5}, break_at=("trunk.layer.attention.window", None)),
    ministral3("class-defaults", {"rope_parameters": None}, break_at=("trunk.norm.eps", 0.3)),
    afmoe("mixed", fields=("logits", *STATES, "hidden_states.3", "hidden_states.4")),
    afmoe("no-dense-plain-input", {"num_dense_layers": 0, "mup_enabled": False, "num_shared_experts": 1}),
    t5("original", fields=("logits", *PAIR_STATES)),
    t5("deeper-decoder-silu", more={"num_decoder_layers": 3, "feed_forward_proj": "silu"}),
    t5("bare", tf.T5Model, fields=("last_hidden_state", "encoder_last_hidden_state"), labels=False),
    t5(
        "encoder",
        tf.T5EncoderModel,
        fields=("last_hidden_state", "hidden_states.1"),
        labels=False,
        inputs=token_batch,
        break_at=("trunk.position_bias.max_distance", 20),
    ),
    t5(
        "v1.1-encoder",
        tf.T5EncoderModel,
        GATED,
        fields=("last_hidden_state", "hidden_states.1"),
        labels=False,
        inputs=token_batch,
        break_at=("trunk.position_bias.max_distance", 20),
    ),
    t5(
        "v1.1-own-head", more={**GATED, "tie_word_embeddings": False}, prepare=own_head, fields=("logits", *PAIR_STATES)
    ),
    t5("v1.1-tied-unscaled", more={**GATED, "tie_word_embeddings": False}),
    t5("v1.1-tied-scaled-silu", more={"feed_forward_proj": "gated-silu"}),
    t5gemma2("text", fields=("logits", *PAIR_STATES)),
    t5gemma2("images", inputs=image_batch, fields=("logits", "encoder_last_hidden_state")),
    t5gemma2("even-window", {"sliding_window": 4}, break_at=("language.encoder.layer.attention.window", 5)),
    afmoe("all-full-biased", {"layer_types": ["full_attention"] * 4, "attention_bias": True}),
]
