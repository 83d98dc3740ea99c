"""The table's rows of families outside the package: one YAML each in tests/families, no Python of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as tf
from oracle import VOCAB, Case
from text_cases import IDS, PAIR_STATES, TEXT_SIZE, padded_with, pair_batch

FOLDER = str(Path(__file__).parent.parent / "families")
GROUPED = {**TEXT_SIZE, **IDS, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
SLIDING = {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 10}


def outside(family: str, variant: str, model: type, config: Any, path: str, wrong: Any, **kw: Any) -> Case:
    return Case(family, variant, model, config, (path, wrong), config_dirs=(FOLDER,), **kw)


def bart(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    size: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 32, "max_position_embeddings": 40, "decoder_layers": 3}
    size |= {"encoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48}
    config = tf.BartConfig(**{**size, "decoder_ffn_dim": 40, "forced_eos_token_id": None, **(more or {})})
    kw.setdefault("inputs", pair_batch)
    return outside("bart", variant, model, config, "encoder.layer.mlp.activation", "relu", **kw)


BLOOM = {"vocab_size": VOCAB, "hidden_size": 48, "n_layer": 2, **IDS}
MPT = {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 40}
GPTJ = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4, **IDS}
OPT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
OPT |= {"max_position_embeddings": 40, "word_embed_proj_dim": 32, "pad_token_id": 1}
FALCON = {key: value for key, value in TEXT_SIZE.items() if key != "intermediate_size"}
FALCON |= {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48}
GLM = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1}
GLM |= {"first_k_dense_replace": 1, "n_shared_experts": 2, "head_dim": 16, "routed_scaling_factor": 1.7}
GEMMA3_ROPES: dict[str, Any] = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
GEMMA3_ROPES["full_attention"] = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}

EPS, THETA = "trunk.norm.eps", "trunk.layer.attention.rope.theta"
FRACTION = "trunk.layer.attention.rope.fraction"
FAMILIES = [
    outside("qwen3", "outside", tf.Qwen3ForCausalLM, tf.Qwen3Config(**GROUPED, head_dim=12), THETA, 77.0),
    outside("qwen2", "plain", tf.Qwen2ForCausalLM, tf.Qwen2Config(**GROUPED), THETA, 77.0),
    outside("gpt_neox", "parallel", tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**TEXT_SIZE), FRACTION, 0.5),
    outside(
        "gpt_neox",
        "bare-unbiased",
        tf.GPTNeoXModel,
        tf.GPTNeoXConfig(**TEXT_SIZE, attention_bias=False),
        FRACTION,
        0.5,
        fields=("last_hidden_state",),
        labels=False,
    ),
    outside("phi", "parallel", tf.PhiForCausalLM, tf.PhiConfig(**GROUPED), FRACTION, 1.0),
    outside("gptj", "parallel", tf.GPTJForCausalLM, tf.GPTJConfig(**GPTJ), "trunk.layer.attention.rope.features", 8),
    outside("falcon", "grouped", tf.FalconForCausalLM, tf.FalconConfig(**FALCON), THETA, 77.0),
    outside("cohere", "parallel", tf.CohereForCausalLM, tf.CohereConfig(**GROUPED), THETA, 77.0),
    outside(
        "gemma2",
        "capped",
        tf.Gemma2ForCausalLM,
        tf.Gemma2Config(**GROUPED, **SLIDING, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        "trunk.layer.attention.softcap",
        None,
    ),
    outside(
        "gemma3_text",
        "two-ropes",
        tf.Gemma3ForCausalLM,
        tf.Gemma3TextConfig(**GROUPED, **SLIDING, **MIXED, rope_parameters=GEMMA3_ROPES),
        THETA,
        77.0,
    ),
    outside("bloom", "alibi", tf.BloomForCausalLM, tf.BloomConfig(**BLOOM, n_head=4), EPS, 0.3),
    outside("bloom", "alibi-6-heads", tf.BloomForCausalLM, tf.BloomConfig(**BLOOM, n_head=6), EPS, 0.3),
    outside("mpt", "alibi", tf.MptForCausalLM, tf.MptConfig(**MPT), EPS, 0.3),
    bart("offsets", tf.BartForConditionalGeneration, fields=("logits", *PAIR_STATES)),
    bart("scaled", tf.BartForConditionalGeneration, {"scale_embedding": True}),
    bart("bare", tf.BartModel, fields=("last_hidden_state", "encoder_last_hidden_state"), labels=False),
    outside(
        "opt",
        "mask-positions",
        tf.OPTForCausalLM,
        tf.OPTConfig(**OPT),
        "trunk.layer.mlp.activation",
        "gelu",
        inputs=lambda padding: padded_with(1, padding),
    ),
    outside("mixtral", "experts", tf.MixtralForCausalLM, tf.MixtralConfig(**GROUPED, **EXPERTS), THETA, 77.0),
    outside(
        "mixtral",
        "window",
        tf.MixtralForCausalLM,
        tf.MixtralConfig(**GROUPED, **EXPERTS, sliding_window=5),
        "trunk.layer.attention.window",
        None,
    ),
    outside(
        "qwen3_moe",
        "not-renormalised",
        tf.Qwen3MoeForCausalLM,
        tf.Qwen3MoeConfig(**GROUPED, **EXPERTS, moe_intermediate_size=16, head_dim=12),
        "trunk.layer.mlp.router.renormalise",
        True,
    ),
    outside(
        "glm4_moe",
        "groups",
        tf.Glm4MoeForCausalLM,
        tf.Glm4MoeConfig(**GROUPED, **GLM, attention_bias=True, use_qk_norm=True),
        "trunk.layer.mlp.router.scale",
        1.0,
    ),
    outside("olmo2", "output-norm", tf.Olmo2ForCausalLM, tf.Olmo2Config(**GROUPED), THETA, 77.0),
    outside("phi3", "fused", tf.Phi3ForCausalLM, tf.Phi3Config(**GROUPED, sliding_window=5), THETA, 77.0),
    outside(
        "smollm3",
        "no-rope-layers",
        tf.SmolLM3ForCausalLM,
        tf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]),
        THETA,
        77.0,
    ),
    outside(
        "granite",
        "multipliers",
        tf.GraniteForCausalLM,
        tf.GraniteConfig(
            **GROUPED, embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_scaling=2.0
        ),
        "trunk.layer.residual_scale",
        1.0,
    ),
]
