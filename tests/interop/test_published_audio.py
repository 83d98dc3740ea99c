"""Models of sound as the Hub has them: config.json files of their time give the sizes our YAMLs say."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import mlplatform as mp
from mlplatform.cli.compose import compose_model
from mlplatform.cli.pretrained import Families
from mlplatform.errors import CheckpointError
from mlplatform.interop.parts import head_of, read_config
from mlplatform.models.describe import describe

CONVOLUTIONS: dict[str, Any] = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_bias": False}
CONVOLUTIONS |= {"conv_stride": [5, 2, 2, 2, 2, 2, 2], "num_feat_extract_layers": 7, "num_conv_pos_embeddings": 128}
WAV2VEC2: dict[str, Any] = json.loads("""{"activation_dropout": 0.1, "apply_spec_augment": true,
    "architectures": ["Wav2Vec2ForCTC"], "attention_dropout": 0.1, "bos_token_id": 1, "codevector_dim": 256,
    "contrastive_logits_temperature": 0.1, "ctc_loss_reduction": "sum", "ctc_zero_infinity": false,
    "diversity_loss_weight": 0.1, "do_stable_layer_norm": false, "eos_token_id": 2, "feat_extract_activation": "gelu",
    "feat_extract_dropout": 0.0, "feat_extract_norm": "group", "feat_proj_dropout": 0.1, "feat_quantizer_dropout": 0.0,
    "final_dropout": 0.1, "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout": 0.1,
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-05, "layerdrop": 0.1, "mask_feature_length": 10, "mask_feature_prob": 0.0,
    "mask_time_length": 10, "mask_time_prob": 0.05, "model_type": "wav2vec2", "num_attention_heads": 12,
    "num_codevector_groups": 2, "num_codevectors_per_group": 320, "num_conv_pos_embedding_groups": 16,
    "num_hidden_layers": 12, "num_negatives": 100, "pad_token_id": 0, "proj_codevector_dim": 256,
    "transformers_version": "4.7.0.dev0", "vocab_size": 32}""")
WAV2VEC2 |= CONVOLUTIONS
BASE = {
    **WAV2VEC2,
    "architectures": ["Wav2Vec2ForPreTraining"],
    "final_dropout": 0.0,
    "freeze_feat_extract_train": True,
}
BASE |= {"mask_channel_length": 10, "mask_channel_min_space": 1, "mask_channel_other": 0.0, "mask_channel_prob": 0.0}
BASE |= {"mask_channel_selection": "static", "mask_time_min_space": 1, "mask_time_other": 0.0}
BASE |= {"mask_time_selection": "static", "no_mask_channel_overlap": False, "no_mask_time_overlap": False}
LV60 = {**WAV2VEC2, "architectures": ["Wav2Vec2ForPreTraining"], "conv_bias": True, "do_stable_layer_norm": True}
LV60 |= {"feat_extract_norm": "layer", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
LV60 |= {"num_hidden_layers": 24, "codevector_dim": 768, "proj_codevector_dim": 768}
HUBERT = {key: value for key, value in WAV2VEC2.items() if "codevector" not in key and key != "num_negatives"}
HUBERT |= {"model_type": "hubert", "architectures": ["HubertModel"], "tokenizer_class": "Wav2Vec2CTCTokenizer"}
for key in ("contrastive_logits_temperature", "diversity_loss_weight", "feat_quantizer_dropout"):
    del HUBERT[key]
WHISPER: dict[str, Any] = json.loads("""{"_name_or_path": "openai/whisper-tiny", "activation_dropout": 0.0,
    "activation_function": "gelu", "architectures": ["WhisperForConditionalGeneration"], "attention_dropout": 0.0,
    "begin_suppress_tokens": [220, 50257], "bos_token_id": 50257, "d_model": 384, "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536, "decoder_layerdrop": 0.0, "decoder_layers": 4, "decoder_start_token_id": 50258,
    "dropout": 0.0, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "encoder_layerdrop": 0.0,
    "encoder_layers": 4, "eos_token_id": 50257, "forced_decoder_ids": [[1, 50259], [2, 50359], [3, 50363]],
    "init_std": 0.02, "is_encoder_decoder": true, "max_length": 448, "max_source_positions": 1500,
    "max_target_positions": 448, "model_type": "whisper", "num_hidden_layers": 4, "num_mel_bins": 80,
    "pad_token_id": 50257, "scale_embedding": false, "suppress_tokens": [1, 2, 7], "torch_dtype": "float32",
    "transformers_version": "4.27.0.dev0", "use_cache": true, "vocab_size": 51865}""")
LARGE_V3 = {**WHISPER, "d_model": 1280, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "decoder_layers": 32}
LARGE_V3 |= {"encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32, "num_hidden_layers": 32}
LARGE_V3 |= {"num_mel_bins": 128, "vocab_size": 51866, "pad_token_id": 50256, "median_filter_width": 7}
LARGE_V3 |= {"apply_spec_augment": False, "classifier_proj_size": 256, "use_weighted_layer_sum": False}


def read(config: dict[str, Any]) -> dict[str, Any]:
    find = Families().find
    family = find(config)
    return read_config(config, family, head_of(config, family, None), find)


@pytest.mark.parametrize(
    ("config", "name", "overrides"),
    [
        (WAV2VEC2, "wav2vec2", []),
        (BASE, "wav2vec2", ["head=pretraining"]),
        (LV60, "wav2vec2_large_lv60", ["head=pretraining"]),
        (HUBERT, "hubert", ["head=none"]),
        (WHISPER, "whisper", []),
        (LARGE_V3, "whisper_large_v3", []),
    ],
    ids=["base-960h", "base", "large-lv60", "hubert", "whisper", "whisper-large-v3"],
)
def test_published_files_say_what_our_sizes_say(config: dict[str, Any], name: str, overrides: list[str]) -> None:
    ours, theirs = compose_model(name, overrides).check().config, read(config)
    with torch.device("meta"):
        reference = getattr(tf, config["architectures"][0])(tf.AutoConfig.for_model(**config))
    assert describe(theirs).parameters == describe(ours).parameters
    assert describe(theirs).total == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (WAV2VEC2, {"add_adapter": True}, "add_adapter=True"),
        (WAV2VEC2, {"adapter_attn_dim": 16}, "adapter_attn_dim=16"),
        (WAV2VEC2, {"use_weighted_layer_sum": True}, "use_weighted_layer_sum=True"),
        (WAV2VEC2, {"feat_extract_norm": "batch"}, "feat_extract_norm='batch'; the YAML can say 'group', 'layer'"),
        (WAV2VEC2, {"architectures": ["Wav2Vec2ForXVector"]}, "Wav2Vec2ForXVector"),
        (HUBERT, {"conv_pos_kernel": 3}, "conv_pos_kernel=3"),
        (WHISPER, {"num_mels": 80}, "num_mels=80"),
    ],
)
def test_what_no_yaml_can_say_is_one_line(config: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        read({**config, **change})
    assert "\n" not in str(caught.value)


def test_files_without_the_vector_of_hidden_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As wav2vec2-base-960h: the vector is initialised, said so, and nothing else may be missing."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = {**WAV2VEC2, **small, "conv_dim": [8, 8], "conv_kernel": [4, 3], "conv_stride": [2, 2]}
    config.pop("num_feat_extract_layers")
    tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**config)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["wav2vec2.masked_spec_embed"]
    save_file(tensors, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        model: Any = mp.load(tmp_path)
    assert "trunk.input.masking is not in" in caplog.text
    vector = model.trunk.input.masking.vector
    assert 0 <= vector.min() < vector.max() < 1
    del tensors["wav2vec2.encoder.layer_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor 'wav2vec2.encoder.layer_norm.weight'"):
        mp.load(tmp_path)
