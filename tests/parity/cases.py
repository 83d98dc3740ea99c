"""The table of models beside transformers: one row a case."""

from __future__ import annotations

from typing import Any

import transformers as tf
from audio_cases import AUDIO
from detection_cases import DETECTION
from family_cases import FAMILIES
from multimodal_cases import MULTIMODAL
from oracle import VOCAB, Case
from text_cases import TEXT
from vision_cases import VISION

SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"intermediate_size": 48, "max_position_embeddings": 40}
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama(variant: str, model: type = tf.LlamaForCausalLM, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    config = tf.LlamaConfig(**{**SIZE, **IDS, "num_key_value_heads": 2, **(more or {})})
    kw.setdefault("break_at", ("trunk.norm.eps", 0.3))
    return Case("llama", variant, model, config, **kw)


def rope(variant: str, **parameters: Any) -> Case:
    parameters = {"rope_type": variant, "rope_theta": 10000.0, **parameters}
    more = {"max_position_embeddings": 8, "rope_parameters": parameters}
    return llama(f"rope-{variant}", more=more, break_at=("trunk.layer.attention.rope.scaling", None))


def gpt2(variant: str, model: type = tf.GPT2LMHeadModel, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    size = {"vocab_size": VOCAB, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
    kw.setdefault("break_at", ("trunk.layer.mlp.activation", "relu"))
    return Case("gpt2", variant, model, tf.GPT2Config(**{**size, **IDS, **(more or {})}), **kw)


def bert(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    kw.setdefault("break_at", ("trunk.norm.eps", 0.3))
    return Case("bert", variant, model, tf.BertConfig(**{**SIZE, "type_vocab_size": 2, **(more or {})}), **kw)


ROPE_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
CASES = [
    llama("plain", fields=("logits", "hidden_states.0", "hidden_states.1", "hidden_states.2")),
    llama(
        "biases-tied-head_dim",
        more={"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 12},
    ),
    rope("linear", factor=4.0),
    rope("dynamic", factor=2.0),
    rope("yarn", factor=4.0, original_max_position_embeddings=8),
    rope("llama3", **ROPE_LLAMA3),
    llama(
        "classification",
        tf.LlamaForSequenceClassification,
        {"num_labels": 3},
        tokenwise=False,
        paddings=(None,),
        labels=False,
    ),
    llama("bare", tf.LlamaModel, fields=("last_hidden_state",), labels=False),
    gpt2("plain", fields=("logits", "hidden_states.0", "hidden_states.1", "hidden_states.2")),
    gpt2("inner-width", more={"n_inner": 48}),
    gpt2(
        "classification",
        tf.GPT2ForSequenceClassification,
        {"num_labels": 3},
        tokenwise=False,
        paddings=(None,),
        labels=False,
    ),
    gpt2("bare", tf.GPT2Model, fields=("last_hidden_state",), labels=False),
    bert("masked_lm", tf.BertForMaskedLM, fields=("logits", "hidden_states.0", "hidden_states.1", "hidden_states.2")),
    bert("classification", tf.BertForSequenceClassification, {"num_labels": 3}, tokenwise=False),
    bert("token-classification", tf.BertForTokenClassification, {"num_labels": 3}),
    bert("question-answering", tf.BertForQuestionAnswering, fields=("start_logits", "end_logits"), labels=False),
    bert("pooled", tf.BertModel, fields=("last_hidden_state", "pooler_output"), labels=False),
    bert("pretraining", tf.BertForPreTraining, fields=("prediction_logits", "seq_relationship_logits"), labels=False),
    *TEXT,
    *FAMILIES,
    *VISION,
    *MULTIMODAL,
    *AUDIO,
    *DETECTION,
]
