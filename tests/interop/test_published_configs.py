"""config.json files as they lie on the Hub (older spellings, keys without a meaning) give the published sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest

import mlplatform as mp
from mlplatform.cli.pretrained import Families
from mlplatform.errors import CheckpointError
from mlplatform.interop.parts import head_of, read_config
from mlplatform.models.describe import Node, describe
from mlplatform.registry import Spec

SLIDING, FULL = "sliding_attention", "full_attention"
T5: dict[str, Any] = json.loads("""{"architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
    "is_encoder_decoder": true, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8,
    "num_layers": 6, "output_past": true, "pad_token_id": 0, "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"num_beams": 4}}, "vocab_size": 32128}""")
T5_V1_1 = {**T5, "d_ff": 1024, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 8, "num_heads": 6}
T5_V1_1 |= {"num_layers": 8, "tie_word_embeddings": False, "architectures": ["T5ForConditionalGeneration"]}
T5_ENCODER = {**T5_V1_1, "architectures": ["T5EncoderModel"], "d_model": 4096, "d_ff": 10240, "num_heads": 64}
T5_ENCODER |= {"num_layers": 24, "num_decoder_layers": 24}
ROBERTA: dict[str, Any] = json.loads("""{"architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 1024,
    "initializer_range": 0.02, "intermediate_size": 4096, "layer_norm_eps": 1e-05, "max_position_embeddings": 514,
    "model_type": "roberta", "num_attention_heads": 16, "num_hidden_layers": 24, "output_past": true,
    "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265, "_num_labels": 3}""")
DISTILBERT: dict[str, Any] = json.loads("""{"activation": "gelu", "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1, "dim": 768, "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02,
    "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0,
    "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false, "tie_weights_": true,
    "vocab_size": 30522}""")
MINISTRAL: dict[str, Any] = json.loads("""{"architectures": ["MinistralForCausalLM"], "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 12288, "max_position_embeddings": 32768, "model_type": "ministral",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 100000000.0, "sliding_window": 32768, "tie_word_embeddings": false, "vocab_size": 131072}""")
MINISTRAL3: dict[str, Any] = json.loads("""{"architectures": ["Ministral3ForCausalLM"], "attention_dropout": 0.0,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 262144, "model_type": "ministral3", "num_attention_heads": 32, "num_hidden_layers": 34,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "sliding_window": null, "tie_word_embeddings": false,
    "vocab_size": 131072, "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "type": "yarn",
    "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
    "rope_theta": 1000000.0, "rope_type": "yarn", "max_position_embeddings": 262144}}""")
AFMOE: dict[str, Any] = json.loads("""{"architectures": ["AfmoeForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_afmoe.AfmoeForCausalLM"}, "global_attn_every_n_layers": 4,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "load_balance_coeff": 0.001,
    "max_position_embeddings": 131072, "model_type": "afmoe", "moe_intermediate_size": 1024, "mup_enabled": true,
    "n_group": 1, "num_attention_heads": 32, "num_dense_layers": 2, "num_expert_groups": 1, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 32, "num_key_value_heads": 4, "num_limited_groups": 1,
    "num_shared_experts": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000, "route_norm": true,
    "route_scale": 2.826, "score_func": "sigmoid", "sliding_window": 2048, "tie_word_embeddings": false,
    "topk_group": 1, "use_grouped_mm": true, "vocab_size": 200192}""")

VIT: dict[str, Any] = json.loads("""{"architectures": ["ViTForImageClassification"], "model_type": "vit",
    "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 1024,
    "image_size": 224, "initializer_range": 0.02, "intermediate_size": 4096, "layer_norm_eps": 1e-12,
    "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "patch_size": 16, "qkv_bias": true}""")
VIT["id2label"] = {str(number): f"class {number}" for number in range(1000)}
CLIP: dict[str, Any] = json.loads("""{"_name_or_path": "clip-vit-large-patch14/", "architectures": ["CLIPModel"],
    "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": 768,
    "text_config": {"_name_or_path": "", "add_cross_attention": false, "architectures": null, "bos_token_id": 0,
      "attention_dropout": 0.0, "bad_words_ids": null, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu",
      "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072,
      "is_decoder": false, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
      "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 512,
      "torch_dtype": null, "vocab_size": 49408},
    "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
      "num_hidden_layers": 12, "projection_dim": 768},
    "vision_config": {"attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": 1024,
      "image_size": 224, "intermediate_size": 4096, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model",
      "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 512},
    "vision_config_dict": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
      "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}}""")

END = "text.heads.shared.end_token=2"


def read(config: dict[str, Any]) -> dict[str, Any]:
    find = Families().find
    family = find(config)
    spec = read_config(config, family, head_of(config, family, None), find)
    return Spec.of(spec, "model", "model").data


def without_hf(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "hf"}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (T5, "t5"),
        (T5_V1_1, "t5_v1_1"),
        (T5_ENCODER, "t5_v1_1_encoder"),
        (ROBERTA, "roberta_large"),
        (DISTILBERT, "distilbert"),
        (MINISTRAL, "ministral"),
        (MINISTRAL3, "ministral3"),
        (AFMOE, "afmoe"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_file_says_what_our_yaml_of_that_size_says(config: dict[str, Any], name: str) -> None:
    ours, theirs = mp.compose(name).data, read(config)
    assert mp.build(theirs, device="meta").state_dict().keys() == mp.build(ours, device="meta").state_dict().keys()
    for key in without_hf(ours):
        assert defaulted(theirs[key]) == defaulted(ours[key]), key


def defaulted(value: Any) -> Any:
    """Return a spec without what says nothing: dropouts of 0, null, false; lists of layers written out."""
    if isinstance(value, dict):
        kept = {k: defaulted(v) for k, v in value.items()}
        if "layers" in kept and "depth" not in kept:
            kept.pop("layers")
        return {k: v for k, v in kept.items() if v not in (None, False, 0.0, []) or k == "window"}
    return [defaulted(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("config", "name", "change"), [(VIT, "vit_large", []), (CLIP, "clip_vit_l_14", [END])])
def test_image_models_are_built_as_the_file_says(config: dict[str, Any], name: str, change: list[str]) -> None:
    """CLIP's towers have a projection_dim of their own, which means nothing; their old end token is the highest one."""
    ours, theirs = mp.compose(name, change).data, read(config)
    assert in_effect(describe(theirs).tree) == in_effect(describe(ours).tree)


def in_effect(node: Node) -> Any:
    """Return every block's fields as they are after all defaults; images know their length by themselves."""
    facts = {name: value for name, value in node.facts.items() if name != "context_length"}
    return node.name, node.kind, facts, node.parameters, node.copies, [in_effect(child) for child in node.children]


def test_every_fourth_layer_is_full_where_the_file_has_no_list() -> None:
    exceptions = read(AFMOE)["trunk"]["exceptions"]
    assert exceptions[0] == {"layers": list(range(3, 32, 4)), "attention": {"window": None, "rope": None}}
    assert exceptions[1]["layers"] == ":2"


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (AFMOE, {"n_group": 4}, "n_group=4; the YAML of afmoe means 1 only"),
        (AFMOE, {"score_func": "softmax"}, "score_func='softmax'"),
        (AFMOE, {"layer_types": [SLIDING, "linear_attention"] * 16}, "layer_types has 'linear_attention'"),
        (MINISTRAL3, {"rope_parameters": {"rope_type": "spiral"}}, "rope_type='spiral'"),
        (MINISTRAL, {"qk_clip": 3}, "qk_clip=3, which the YAML of ministral does not name"),
        (T5_V1_1, {"feed_forward_proj": "gated-mish"}, "gated-mish"),
        (ROBERTA, {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        (ROBERTA, {"is_decoder": True}, "is_decoder=True"),
    ],
)
def test_what_a_yaml_cannot_say_stops_the_load(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read({**config, **change})
    assert "\n" not in str(caught.value)
